"""What all tests share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder of public reference data; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("MFPO_REFERENCE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}; set MFPO_REFERENCE_DATA to its folder")
    return folder
