"""Fixtures of the picture book's tests."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def few_scenes_at_a_time():
    """Tests want a few pairs; with 64 scenes at a time most would be thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mfpo.picturebook.source._BATCH", 8)
        yield
