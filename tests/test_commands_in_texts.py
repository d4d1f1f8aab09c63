"""The commands that README and book show: the cheap ones run, all others are understood."""

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from book_site import ROOT

from zqlib.book.pages import GENERATED
from zqlib.cli import app

Zq = Callable[..., tuple[int, str, str]]
TEXTS = ["README.md", *sorted(f"book/{path.name}" for path in (ROOT / "book").glob("*.md"))]
CHEAP = ("quantize", "transcribe", "evaluate", "export", "results")


def commands(text: str) -> list[str]:
    """The lines of shell blocks, and what stands in backquotes and begins like a command."""
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line.strip()]
    quoted = re.findall(r"(?<!`)`((?:ZQ_ASSETS=\S+ )?(?:zq|make) [^`]+)`(?!`)", text)
    found = [" ".join(shlex.split(line, comments=True)) for line in [*lines, *quoted]]
    return [c for c in found if not c.startswith("zq COMMAND")]


SHOWN = sorted(
    {c for name in TEXTS for c in commands((ROOT / name).read_text())}
    | {c for make in GENERATED.values() for c in commands(make(ROOT))}
)


def test_there_are_commands() -> None:
    assert len(SHOWN) > 20 and any(c.startswith("ZQ_ASSETS") for c in SHOWN)


@pytest.mark.parametrize("shown", SHOWN)
def test_a_command_is_understood(shown: str) -> None:
    words = [w for w in shlex.split(shown) if not w.startswith("ZQ_ASSETS=")]
    if words[0] == "make":
        run = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return
    assert words[0] == "zq"
    group = typer.main.get_command(app)
    subcommand = group.commands[words[1]]  # type: ignore[attr-defined]
    options = {o for p in subcommand.params for o in [*p.opts, *p.secondary_opts]}
    given = {w.partition("=")[0] for w in words[2:] if w.startswith("-")}
    assert given <= options | {"--help"}, shown
    if words[1] == "reproduce" and "--profile" in words and "<" not in shown:
        profile = words[words.index("--profile") + 1]
        assert (ROOT / f"workflow/profiles/{profile}.json").is_file()


def test_the_quickstart_runs(prepared: Path, here: Path, zq: Zq) -> None:
    """The shell lines of the README that need no hours, on a tiny checkpoint and a few noises."""
    shutil.copy(prepared / "tiny0.nemo", "MODEL.nemo")
    shutil.copytree(prepared / "audio", "audio")
    shutil.copy(prepared / "test.jsonl", "manifest.jsonl")
    shutil.copy(prepared / "audio/0.wav", "a.wav")
    (here / "results").symlink_to(ROOT / "results")
    lines = re.findall(r"^zq .*", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    ran = []
    for line in lines:
        _, name, *arguments = shlex.split(line, comments=True)
        if name in CHEAP and "tensorrt" not in arguments:  # an engine needs its GPU
            status, _, error = zq(name, *arguments)
            assert status == 0, f"{line}: {error}"
            ran.append(name)
    assert {"quantize", "transcribe", "evaluate", "export"} <= set(ran)
