"""Fixtures shared by the suite."""

import gzip
import io
import json
import os
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from book_site import build_site
from checkpoints import SYNTHESIS, checkpoint, quantized, write_corpus

from zqlib import cli


def pytest_configure() -> None:
    """Kernels of the engine triton are interpreted, unless the caller says TRITON_INTERPRET=0.

    Set before any test is imported, since Triton reads it once, when somebody first imports it.
    """
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and speech that the environment variable ZQ_ASSETS names."""
    folder = os.environ.get("ZQ_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ZQ_ASSETS does not name a folder with models/ and speech/")
    return Path(folder)


def real_model(assets: Path, name: str) -> Path:
    """A checkpoint among the assets; without it, the test is skipped."""
    path = assets / "models" / name
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path


@pytest.fixture(scope="session")
def quartznet_nemo(assets: Path) -> Path:
    """The real QuartzNet-15x5 checkpoint."""
    return real_model(assets, "quartznet15x5_en.nemo")


@pytest.fixture(scope="session")
def conformer_nemo(assets: Path) -> Path:
    """The real Conformer-CTC-small checkpoint."""
    return real_model(assets, "conformer_ctc_small_en.nemo")


@pytest.fixture
def make_tar() -> Callable[..., bytes]:
    """A function from names and contents to the bytes of a tar archive (gzip by default)."""

    def make(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        content = buffer.getvalue()
        return gzip.compress(content, mtime=0) if mode == "w:gz" else content  # same bytes always

    return make


@pytest.fixture
def zq(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """`zq` in this process: exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zq", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            cli.main()
        code = caught.value.code
        captured = capfd.readouterr()
        return code if isinstance(code, int) else 0, captured.out, captured.err

    return run


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint, its program, three recordings, and settings of a fast synthesis."""
    folder = tmp_path_factory.mktemp("prepared")
    quantized(checkpoint(folder)).save(folder / "tiny0.zq")
    write_corpus(folder, 3)
    (folder / "fast.json").write_text(json.dumps(SYNTHESIS.to_json()))
    return folder


@pytest.fixture
def here(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder; the models and recordings lie in `prepared`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZQ_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    return tmp_path


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the book's pages, built once."""
    return build_site(tmp_path_factory.mktemp("book"))
