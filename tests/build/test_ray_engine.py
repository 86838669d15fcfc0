"""The cluster's engine on a local Ray with two workers: the same bytes as on one machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mfpo.build.pipeline import BuildSettings, build
from mfpo.build.ray_engine import RayData
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.errors import MfpoError, SettingError
from mfpo.masks import encode_mask
from mfpo.records import encode_image
from mfpo.sources import open_source

ray = pytest.importorskip("ray", reason="needs Ray; pip install 'mfpo[ray]'")
SETTINGS = BuildSettings(shard_size=4)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    yield
    ray.shutdown()


def write_pairs(path: Path, *, objects: bool = True) -> None:
    """14 pairs in TRL's format, of which one has no answer, one no image that can be read, and one an id again."""
    mask = np.zeros((24, 36), dtype=bool)
    mask[4:12, 6:18] = True
    rows = []
    for number in range(14):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 36, 3), dtype=np.uint8)
        rows.append(
            {
                "id": "r1" if number == 9 else f"r{number}",
                "images": [encode_image(Image.fromarray(pixels))],
                "prompt": "What is there?",
                "chosen": "" if number == 2 else "A dog on a lawn.",
                "rejected": "A cat.",
                "objects": [{"name": "dog", "mask": encode_mask(mask)}] if objects else None,
            }
        )
    rows[6]["images"][0]["bytes"] = rows[6]["images"][0]["bytes"][:200]
    pq.write_table(pa.Table.from_pylist(rows), path)


def content(folder: Path) -> dict[str, object]:
    """All files of a build, without the seconds that it took."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    return files | {"summary.json": {key: value for key, value in summary.items() if "seconds" not in key}}


def test_the_bytes_are_those_of_one_machine(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet")
    source = open_source(tmp_path / "pairs.parquet")
    build(source, tmp_path / "local", SETTINGS, DatasetRegions())
    summary = build(source, tmp_path / "ray", SETTINGS, DatasetRegions(), engine=RayData(2))
    assert (summary["read"], summary["written"], summary["set_aside"]) == (14, 11, 3)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_an_error_that_ends_the_run_stays_one_line(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", objects=False)
    with pytest.raises(MfpoError, match=r"row 0 of pairs.parquet brings no object masks"):
        build(open_source(tmp_path / "pairs.parquet"), tmp_path / "out", SETTINGS, DatasetRegions(), engine=RayData(2))


def test_no_workers_are_refused() -> None:
    with pytest.raises(SettingError, match="workers is 0"):
        RayData(0)
