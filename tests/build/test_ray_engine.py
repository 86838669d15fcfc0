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
from mfpo.cli import main
from mfpo.cli.console import ROWS_SET_ASIDE
from mfpo.errors import MfpoError, SettingError
from mfpo.sources import open_source

ray = pytest.importorskip("ray", reason="needs Ray; pip install 'mfpo[ray]'")
SETTINGS = BuildSettings(shard_size=4)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    RayData(2)  # starts Ray on this machine
    yield
    ray.shutdown()


def test_the_bytes_are_those_of_one_machine(
    write_pairs: Callable, content: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "pairs.parquet")
    built = []
    for engine, workers in (("local", "1"), ("ray", "2")):
        out = ["--out", str(tmp_path / engine), "--engine", engine, "--workers", workers, "shard_size=4"]
        monkeypatch.setattr("sys.argv", ["mfpo", "build", str(tmp_path / "pairs.parquet"), *out])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == ROWS_SET_ASIDE
        built.append(content(tmp_path / engine))
        assert json.loads(built[-1].pop("made_by.json"))["settings"]["shard_size"] == 4
    assert [built[1]["summary.json"][key] for key in ("read", "written", "set_aside")] == [14, 11, 3]
    assert built[0] == built[1]


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
    assert build_into(source, tmp_path / "ray", chosen, engine=RayData(1))["written"] == 5
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_an_error_that_ends_the_run_stays_one_line(write_pairs: Callable, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet", objects=False)
    with pytest.raises(MfpoError, match=r"row \d+ of pairs.parquet has no object masks"):
        build_into(
            open_source(tmp_path / "pairs.parquet"), tmp_path / "out", SETTINGS, DatasetRegions(), engine=RayData(1)
        )


def test_no_workers_are_refused() -> None:
    with pytest.raises(SettingError, match="workers is 0"):
        RayData(0)
