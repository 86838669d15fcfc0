"""The cluster's engine on a local Ray with two workers: the same bytes as on one machine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from mfpo.build.pipeline import build_into
from mfpo.build.ray_engine import RayData
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.errors import MfpoError, SettingError
from mfpo.sources import open_source

ray = pytest.importorskip("ray", reason="needs Ray; pip install 'mfpo[ray]'")
SETTINGS = BuildSettings(shard_size=4)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def test_the_bytes_are_those_of_one_machine(write_pairs: Callable, content: Callable, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet")
    source = open_source(tmp_path / "pairs.parquet")
    build_into(source, tmp_path / "local", SETTINGS, DatasetRegions())
    summary = build_into(source, tmp_path / "ray", SETTINGS, DatasetRegions(), engine=RayData(2))
    assert (summary["read"], summary["written"], summary["set_aside"]) == (14, 11, 3)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_a_valid_row_is_kept_where_only_a_row_that_is_none_had_its_id(content: Callable, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    rows = [
        {
            "id": f"r{number % 5}",
            "image": "red.png",
            "question": "?",
            "chosen": "A dog." * (number > 6),
            "rejected": ".",
        }
        for number in range(17)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source, chosen = open_source(tmp_path / "pairs.jsonl"), BuildSettings(shard_size=3, corruption="global")
    build_into(source, tmp_path / "local", chosen)
    assert build_into(source, tmp_path / "ray", chosen, engine=RayData(2))["written"] == 5
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_an_error_that_ends_the_run_stays_one_line(write_pairs: Callable, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", objects=False)
    with pytest.raises(MfpoError, match=r"row \d+ of pairs.parquet brings no object masks"):
        build_into(
            open_source(tmp_path / "pairs.parquet"), tmp_path / "out", SETTINGS, DatasetRegions(), engine=RayData(2)
        )


def test_no_workers_are_refused() -> None:
    with pytest.raises(SettingError, match="workers is 0"):
        RayData(0)
