"""Fixtures shared by the suite."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of real models and speech that the environment variable ZQ_ASSETS names."""
    folder = os.environ.get("ZQ_ASSETS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ZQ_ASSETS does not name a folder with models/ and speech/")
    return Path(folder)


@pytest.fixture(scope="session")
def quartznet_nemo(assets: Path) -> Path:
    """The real QuartzNet-15x5 checkpoint."""
    path = assets / "models" / "quartznet15x5_en.nemo"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    return path
