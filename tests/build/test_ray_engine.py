"""The cluster's engine on a cluster of two nodes, both on this machine: the same bytes as by the local engine."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mfpo.build.pipeline import build_into
from mfpo.build.ray_engine import RayData
from mfpo.build.regions import open_segmenter
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.cli import main
from mfpo.cli.console import ROWS_SET_ASIDE
from mfpo.errors import MfpoError, SettingError
from mfpo.registry import load_plugin
from mfpo.sources import open_source

ray = pytest.importorskip("ray", reason="needs Ray; pip install 'mfpo[ray]'")
SETTINGS = BuildSettings(shard_size=4)
PLUGIN = Path(__file__).parents[2] / "docs" / "plugin.py"

# A segmenter that leaves the name of the node it works on in the folder WHERE.
ON_WHICH_NODE = """
import time
from pathlib import Path

import mfpo
import ray


@mfpo.segmenter("slow")
def slow(where, settings):
    def find(searches):
        if ray.is_initialized():
            Path(where, ray.get_runtime_context().get_node_id()).touch()
            time.sleep(0.05)
        return [[] for search in searches]

    return find
"""


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    """The first node has cores for two actors and for the rest without the second too."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    cluster.add_node(num_cpus=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_the_bytes_are_those_of_one_machine(
    write_pairs: Callable, content: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pairs(tmp_path / "pairs.parquet")
    monkeypatch.chdir(tmp_path)
    built = build_by_both(["build", "pairs.parquet", "shard_size=4"], ROWS_SET_ASIDE, content, monkeypatch)
    assert [json.loads(files.pop("made_by.json"))["settings"]["shard_size"] for files in built] == [4, 4]
    assert [built[1]["summary.json"][key] for key in ("read", "written", "set_aside")] == [14, 11, 3]
    assert built[0] == built[1]


def build_by_both(arguments: list[str], status: int, content: Callable, patch: pytest.MonkeyPatch) -> list[dict]:
    """The files that `mfpo build` writes with the arguments, by the local engine and by Ray."""
    for engine, workers in (("local", "1"), ("ray", "2")):
        patch.setattr("sys.argv", ["mfpo", *arguments, "--out", engine, "--engine", engine, "--workers", workers])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert (stopped.value.code or 0) == status
    return [content(Path("local")), content(Path("ray"))]


def test_workers_know_the_source_the_segmenter_and_the_corruption_of_a_plugin(
    content: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((48, 32), 99).convert("RGB").save("noise.png")
    row = {"image": "noise.png", "asked": "What is there?", "best": "A dog.", "worst": "A cat."}
    Path("rated.jsonl").write_text(json.dumps(row) + "\n")
    own = ["--regions", "half=left", "corruption=mosaic", "cell=4"]
    local, ray = build_by_both(
        ["--plugin", str(PLUGIN), "build", "rated.jsonl", "--format", "best-worst", *own], 0, content, monkeypatch
    )
    assert [local["summary.json"][key] for key in ("written", "fallback")] == [1, 0]
    for files in (local, ray):
        made_by = json.loads(files.pop("made_by.json"))
        assert made_by["settings"]["corruption"] == "mosaic"
    assert local == ray


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


def test_a_node_that_is_killed_changes_nothing(
    write_pairs: Callable, content: Callable, tmp_path: Path, cluster: Any
) -> None:
    write_pairs(tmp_path / "pairs.parquet", 40)
    (tmp_path / "plugin.py").write_text(ON_WHICH_NODE)
    (tmp_path / "nodes").mkdir()
    load_plugin(tmp_path / "plugin.py")
    source, segmenter = open_source(tmp_path / "pairs.parquet"), open_segmenter(f"slow={tmp_path / 'nodes'}")
    settings = BuildSettings(shard_size=2)
    (killed,) = cluster.worker_nodes

    class Interrupted(RayData):
        def __call__(self, *arguments):
            for written in super().__call__(*arguments):
                if killed in cluster.worker_nodes and (tmp_path / "nodes" / killed.node_id).exists():
                    cluster.remove_node(killed, allow_graceful=False)
                yield written

    assert build_into(source, tmp_path / "ray", settings, segmenter, engine=Interrupted(2))["written"] == 37
    assert killed not in cluster.worker_nodes, "it had no part in the work"
    build_into(source, tmp_path / "local", settings, segmenter)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def test_without_an_address_ray_starts_on_this_machine(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.shutdown()
    monkeypatch.delenv("RAY_ADDRESS")
    RayData(1)
    assert ray.get_runtime_context().gcs_address != cluster.address
