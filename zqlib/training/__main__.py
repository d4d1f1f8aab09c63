"""`python -m zqlib.training OUTPUT.nemo --work-dir FOLDER [--assets FOLDER] [--config JSON]`."""

import argparse
import json
import os
import sys
from pathlib import Path

from zqlib.errors import ZqError
from zqlib.files import read_json
from zqlib.training.config import TrainingConfig
from zqlib.training.loop import train


def main() -> int:
    """Parse the command line, train, print the scores."""
    parser = argparse.ArgumentParser(prog="python -m zqlib.training", description=main.__doc__)
    parser.add_argument("output", type=Path, help="the .nemo to write")
    parser.add_argument("--work-dir", type=Path, required=True, help="corpus and checkpoints")
    parser.add_argument(
        "--assets",
        type=Path,
        default=os.environ.get("ZQ_ASSETS"),
        help="a folder with speech/an4/train.jsonl and test.jsonl (default: $ZQ_ASSETS)",
    )
    parser.add_argument("--initial", type=Path, help="the .nemo of an earlier round to start from")
    parser.add_argument("--config", type=Path, help="a JSON file of TrainingConfig fields")
    arguments = parser.parse_args()
    try:
        values = read_json(arguments.config) if arguments.config else {}
        an4 = Path(arguments.assets) / "speech" / "an4" if arguments.assets else None
        record = train(
            TrainingConfig.from_json(values),
            arguments.output,
            arguments.work_dir,
            an4_train=an4 / "train.jsonl" if an4 else None,
            an4_test=an4 / "test.jsonl" if an4 else None,
            initial=arguments.initial,
        )
    except ZqError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({key: record[key] for key in ("training_minutes", "tests")}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
