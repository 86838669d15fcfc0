"""Runs that several files look into; each is trained once a session."""

from pathlib import Path

import pytest

from fixtures.runs import PLAIN, STAGED
from mfpo.rank.run import rank
from mfpo.rank.settings import RankSettings
from mfpo.train.run import run as train
from mfpo.train.settings import TrainSettings


@pytest.fixture(scope="session")
def ranked(tiny_llava, preference_data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("rank") / "ranked"
    rank(preference_data, tiny_llava, out, RankSettings())
    return out


@pytest.fixture(scope="session")
def staged_run(tiny_llava, ranked, tmp_path_factory) -> Path:
    return train(ranked, tiny_llava, tmp_path_factory.mktemp("staged") / "run", TrainSettings(**STAGED))


@pytest.fixture(scope="session")
def plain_run(tiny_llava, preference_data, tmp_path_factory) -> Path:
    return train(preference_data, tiny_llava, tmp_path_factory.mktemp("plain") / "run", TrainSettings(**PLAIN))


@pytest.fixture(scope="session")
def lora_run(tiny_llava, preference_data, tmp_path_factory) -> Path:
    settings = TrainSettings(**PLAIN, lora_rank=4)
    return train(preference_data, tiny_llava, tmp_path_factory.mktemp("lora") / "run", settings)
