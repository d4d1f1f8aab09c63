"""The front door of a reproduction: plans what is not done yet and has Snakemake run it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from zqlib.errors import InputError, ZqError
from zqlib.files import write_json
from zqlib.freshness import (
    NOTEBOOKS,
    hypotheses_of,
    inputs,
    load_parameters,
    made_from,
    notebooks,
    page,
    status,
)
from zqlib.notebooks import carry_text
from zqlib.processes import alone, end_with_parent
from zqlib.workflow import PLAN, plan

__all__ = ["RunError", "reproduce"]


_UNTOLD = "A job failed or was killed, see above; run the same command again to go on where it was."


class RunError(ZqError):
    """A job failed; what was done before is kept."""


def reproduce(
    root: Path,
    profile: str,
    only: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    force: bool = False,
    *,
    without: Collection[str] = (),
    on: str | None = None,
    shards: int = 1,
    dry_run: bool = False,
) -> list[Path]:
    """Bring the pages of a profile up to date.

    Args:
        root: a checkout of zqlib.
        profile: a file in `workflow/profiles`.
        only: one notebook instead of all.
        parameters: notebook parameters beside the profile.
        force: execute the notebooks although nothing changed.
        without: notebooks to leave as they are, such as those that time this machine.
        on: a folder of `workflow/` that says where jobs run (`slurm`, `kubernetes`); None for here.
        shards: parts that every evaluation is cut into; the results do not depend on it.
        dry_run: only print the jobs.

    Returns:
        The executed notebooks, up to date.

    Raises:
        InputError: the profile, the notebook or a parameter is unknown, an input is missing, or
            another run is at work.
        RunError: a job failed.
    """
    for name in (only, *without):
        if name is not None and name not in NOTEBOOKS:
            raise InputError(
                f"The notebook {name!r} is unknown; use one of {', '.join(NOTEBOOKS)}."
            )
    if only in without:
        raise InputError(f"{only} is both asked for and left out; drop --only or --without.")
    if parameters and "profile" in parameters:
        raise InputError("The profile is no free parameter; choose it with --profile.")
    if shards < 1:
        raise InputError(f"The number of shards is {shards}; give at least 1.")
    if on is not None and not (root / "workflow" / on / "config.yaml").is_file():
        raise InputError(f"workflow/{on}/config.yaml does not exist; use slurm or kubernetes.")
    values = {"profile": profile, **(parameters or {})}
    cut = load_parameters(root, values).load_profile()
    shown = notebooks(cut)
    if only and only not in shown:
        raise InputError(f"The profile {profile!r} names nothing to compare for {only}.")
    for split in cut.corpora:
        split.resolve(root)  # built or fetched, where the profile names no manifest
    digests = inputs(root, cut, required=True)
    with alone(root / "work" / "lock"):
        names = [only] if only else [name for name in shown if name not in without]
        pages = {name: made_from(root, name, values, digests) for name in names}
        planned = plan(root, values, pages, shards)
        stale = []
        for (name, made), stamp in zip(pages.items(), planned["targets"], strict=True):
            output = page(cut.folder(root), name)
            found = status(root, profile, name, made)
            if (root / stamp).is_file() and found.state == "fresh" and not force:
                carry_text(root, cut.folder(root), name, made)
                print(f"{output.relative_to(root)} is up to date")
            else:
                stale.append(stamp)
                if not dry_run:
                    (root / stamp).unlink(missing_ok=True)
        if stale:
            write_json(root / PLAN, {**planned, "targets": stale})
            _snakemake(root, on, dry_run)
            if not dry_run:
                _drop_unnamed_hypotheses(cut.folder(root))
    return [page(cut.folder(root), name) for name in names]


def _snakemake(root: Path, on: str | None, dry_run: bool) -> None:
    """Run the plan.

    Raises:
        RunError: a job failed.
    """
    logs = root / "work" / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    command = [sys.executable, "-m", "snakemake", "--directory", str(root),
               "--snakefile", str(root / "workflow" / "Snakefile"),
               "--nolock",  # ours is given back even by a killed process
               "--rerun-incomplete", "--rerun-triggers", "mtime"]  # fmt: skip
    command += ["--profile", str(root / "workflow" / on)] if on else ["--cores", _cores()]
    command += ["--dry-run"] if dry_run else ["--quiet", "rules", "host"]
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
    if code:
        told = (path.read_text(encoding="utf-8") for path in sorted(logs.rglob("*"))
                if path.is_file())  # fmt: skip
        raise RunError(next(filter(None, told), _UNTOLD))


def _drop_unnamed_hypotheses(folder: Path) -> None:
    """Delete the hypotheses that no record of a profile's folder names, left by earlier runs.

    Pages name the same files, and run side by side: only after all of them is it known which.
    """
    named = set(map(hypotheses_of, folder.glob("records/*.json")))
    for path in {*folder.glob("hypotheses/*.jsonl")} - named:
        path.unlink()


def _cores() -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count())
