"""A short run of `tests/fuzz.py`: damaged files give an InputError and nothing else."""

import itertools
from pathlib import Path

import pytest
from fuzz import READERS, fuzz


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", READERS)
def test_readers_refuse_what_is_damaged(tmp_path: Path, suffix: str) -> None:
    refused = [was for _, was in itertools.islice(fuzz(suffix, 0, tmp_path), 300)]
    assert sum(refused) > 100  # most changes matter
