"""Runs that several files look into; each is trained once a session."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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
def counter_data(preference_data, tmp_path_factory) -> Path:
    """The records with the right answer to their rejected images."""
    folder = tmp_path_factory.mktemp("counter") / "data"
    folder.mkdir()
    for shard in preference_data.glob("*.parquet"):
        table = pq.read_table(shard)
        place, field = table.column_names.index("counter"), table.schema.field("counter")
        texts = [f"I see noise, {number} times." for number in range(len(table))]
        counter = pa.array([[{"role": "assistant", "content": text}] for text in texts], field.type)
        pq.write_table(table.set_column(place, field, counter), folder / shard.name)
    return folder


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
