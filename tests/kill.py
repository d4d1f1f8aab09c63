"""Kills `zq reproduce` at random moments, runs it again, and compares what is left.

    python tests/kill.py --profile quick --moments 20 --seed 0 [--only ablation]

Works on two clones of this checkout: one runs undisturbed, the other is killed (kill -9) and
started again, at moments that lie on average a run's time divided by their number apart. A run that
ends before its moment has come is followed by one from the start. By hand, because it takes more
than twice as long as the run; `tests/test_reproduce.py` kills a tiny run at four chosen moments.
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def clone(folder: Path) -> Path:
    """A clone of the last commit."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


def start(root: Path, profile: str, only: str | None) -> subprocess.Popen[bytes]:
    """`zq reproduce` with the sources of that clone."""
    program = "from zqlib.cli import main; main()"
    command = [sys.executable, "-c", program, "reproduce", "--profile", profile]
    command += ["--only", only] if only else []
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with (root / "kill.log").open("ab") as log:
        return subprocess.Popen(command, cwd=root, env=environment, stdout=log, stderr=log)


def results(root: Path, profile: str) -> dict[str, bytes]:
    """What a run has left, by path."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for folder in (root / "results" / profile, root / "work/results" / profile)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and ".tmp" not in path.parent.name
        and path.parent.name != "costs"  # measured, and never the same
    }


def main() -> int:
    """Kill, run again, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--only", help="one notebook")
    parser.add_argument("--moments", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    calm, shaken = clone(folder / "calm"), clone(folder / "shaken")
    for root in (calm, shaken):
        shutil.rmtree(root / "results" / given.profile, ignore_errors=True)
    start_s = time.monotonic()
    assert start(calm, given.profile, given.only).wait() == 0
    whole_s = time.monotonic() - start_s
    print(f"undisturbed: {whole_s:.0f} s", flush=True)
    generator = random.Random(given.seed)
    killed = 0
    while killed < given.moments:
        process = start(shaken, given.profile, given.only)
        try:
            process.wait(generator.uniform(0, 2 * whole_s / given.moments))
            shutil.rmtree(shaken / "work")
            print("it ended before its moment: from the start", flush=True)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            print(f"killed {killed} times, {len(results(shaken, given.profile))} files", flush=True)
    assert start(shaken, given.profile, given.only).wait() == 0
    ours, theirs = results(shaken, given.profile), results(calm, given.profile)
    differing = sorted(name for name in ours.keys() | theirs if ours.get(name) != theirs.get(name))
    print(f"{len(theirs)} files, {len(differing)} differ {differing}")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
