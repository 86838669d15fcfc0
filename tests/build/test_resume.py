"""A killed build goes on with what made it, and is refused with anything else."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from mfpo.build.pipeline import build, build_into
from mfpo.build.regions import Search
from mfpo.build.regions.coco import CocoRegions
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.errors import MfpoError, RecordError
from mfpo.masks import encode_mask
from mfpo.records import Region
from mfpo.sources import Source, open_source

SETTINGS = BuildSettings(shard_size=2)
DOG = encode_mask(np.pad(np.ones((4, 4), dtype=bool), 4))


def nothing(searches: list[Search]) -> list[list[Region] | RecordError]:
    return [[] for _ in searches]


def everywhere(searches: list[Search]) -> list[list[Region] | RecordError]:
    return [[Region(keyword="dog", score=1.0, mask=DOG, image=s.number)] for s in searches]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Six rows about three photos beside it, and the photos' COCO instances in `a.json` and `b.json`."""
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    images = [{"id": n, "file_name": f"{n}.png", "height": 12, "width": 12} for n in range(3)]
    annotations = [{"image_id": n, "category_id": 18, "segmentation": DOG} for n in range(3)]
    for name in ("a.json", "b.json"):
        categories = [{"id": 18, "name": "dog"}]
        instances = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / name).write_text(json.dumps(instances))
    row = {"question": "?", "chosen": "A dog.", "rejected": "A cat."}
    rows = [row | {"id": f"r{n}", "image": f"{n % 3}.png"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


def stop(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The first five rows; then Ctrl-C."""
    for number, row in enumerate(rows):
        if number == 5:
            raise KeyboardInterrupt
        yield row


def interrupted(source: Source, out: Path, segmenter: Any, settings: BuildSettings = SETTINGS) -> None:
    with pytest.raises(KeyboardInterrupt):
        build_into(source, out, settings, segmenter, progress=stop)
    assert len(list(out.with_name("out.partial").glob("train-*.json"))) == 2


def refused(source: Source, out: Path, segmenter: Any, words: str, settings: BuildSettings = SETTINGS) -> None:
    with pytest.raises(MfpoError, match=words) as caught:
        build_into(source, out, settings, segmenter)
    assert "\n" not in str(caught.value)
    assert "belongs to a run with other settings" in str(caught.value)


def test_with_another_segmenter_it_is_refused(pairs: Path, content: Callable, tmp_path: Path) -> None:
    source, out = open_source(pairs), tmp_path / "out"
    interrupted(source, out, nothing)
    refused(source, out, everywhere, r"regions was '.*nothing' and is '.*everywhere'")
    refused(source, out, CocoRegions(tmp_path / "a.json"), r"regions was '.*nothing' and is \{'coco'")
    refused(source, out, DatasetRegions(), "regions was '.*nothing' and is 'dataset'")
    build_into(source, out, SETTINGS, nothing)
    build_into(source, tmp_path / "whole", SETTINGS, nothing)
    assert content(out) == content(tmp_path / "whole")


def test_with_another_or_a_changed_file_it_is_refused(pairs: Path, content: Callable, tmp_path: Path) -> None:
    source, out, segmenter = open_source(pairs), tmp_path / "out", CocoRegions(tmp_path / "a.json")
    interrupted(source, out, segmenter)
    refused(source, out, CocoRegions(tmp_path / "b.json"), "a.json was .* and is None; .*b.json was None and is")
    refused(open_source(pairs, images=tmp_path.parent), out, segmenter, "images was")
    before = pairs.stat()
    pairs.write_text(pairs.read_text().replace("A dog.", "A cow."))
    refused(open_source(pairs), out, segmenter, rf"pairs.jsonl was \[{before.st_size}, .* and is \[{before.st_size}, ")
    pairs.write_text(pairs.read_text().replace("A cow.", "A dog."))
    os.utime(pairs, ns=(before.st_atime_ns, before.st_mtime_ns))
    build_into(open_source(pairs), out, SETTINGS, segmenter)
    build_into(open_source(pairs), tmp_path / "whole", SETTINGS, segmenter)
    assert content(out) == content(tmp_path / "whole")


def test_with_other_settings_it_is_refused(pairs: Path, tmp_path: Path) -> None:
    interrupted(open_source(pairs), tmp_path / "out", nothing)
    other = BuildSettings(shard_size=2, seed=1)
    refused(open_source(pairs), tmp_path / "out", nothing, "seed was 0 and is 1", other)


def test_a_dataset_in_memory_is_known_by_its_content(pairs: Path, content: Callable, tmp_path: Path) -> None:
    def rows(chosen: str = "A dog.") -> Source:
        data = datasets.Dataset.from_json(str(pairs), cache_dir=str(tmp_path / "cache"))
        return open_source(data.map(lambda row: row | {"chosen": chosen}), images=tmp_path)

    interrupted(rows(), tmp_path / "out", nothing)
    refused(rows("A cow."), tmp_path / "out", nothing, "content was")
    build_into(rows(), tmp_path / "out", SETTINGS, nothing)
    build_into(rows(), tmp_path / "whole", SETTINGS, nothing)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_what_an_older_version_left_is_refused(pairs: Path, tmp_path: Path) -> None:
    source = open_source(pairs)
    interrupted(source, tmp_path / "out", nothing)
    note = tmp_path / "out.partial" / "made_by.json"
    older = json.loads(note.read_text()) | {"source": "pairs.jsonl", "format": None, "state": [["pairs.jsonl", 1, 2]]}
    del older["vectors"]
    note.write_text(json.dumps(older | {"regions": "dataset"}))
    refused(source, tmp_path / "out", nothing, "source was 'pairs.jsonl' and is")


def test_a_dataset_in_memory_is_built_with_its_images_as_they_are(tmp_path: Path) -> None:
    buffer = tmp_path / "grey.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(buffer, quality=50)
    turns = [[{"role": role, "content": text}] for role, text in (("user", "?"), ("assistant", "A dog."))]
    data = datasets.Dataset.from_dict(
        {
            "images": [[{"bytes": buffer.read_bytes(), "path": None}], [{"bytes": None, "path": str(buffer)}]],
            "prompt": [turns[0], turns[0]],
            "chosen": [turns[1], turns[1]],
            "rejected": [[{"role": "assistant", "content": f"{word}."}] for word in ("A cat", "A cow")],
            "note": ["left", "out"],
        },
        features=datasets.Features(
            {
                "images": datasets.List(datasets.Image()),
                **{
                    name: datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
                    for name in ("prompt", "chosen", "rejected")
                },
                "note": datasets.Value("string"),
            }
        ),
    )
    built = build(data, tmp_path / "out", BuildSettings(corruption="black", mask_dilate=0), everywhere)
    assert [row["id"] for row in built] == ["0", "1"]
    assert [row["rejected"][0]["content"] for row in built] == ["A cat.", "A cow."]
    assert [row["images"][0]["bytes"] for row in built.cast_column(
        "images", datasets.List(datasets.Image(decode=False)))] == [buffer.read_bytes()] * 2  # fmt: skip
    assert not np.asarray(built[0]["rejected_images"][0])[4:8, 4:8].any()
    plain = data.remove_columns(["prompt", "chosen", "rejected"])
    plain = plain.add_column("prompt", ["?"] * 2).add_column("chosen", ["A dog."] * 2).add_column("rejected", ["."] * 2)
    assert build(plain, tmp_path / "plain", BuildSettings(corruption="crop"))[1]["chosen"] == turns[1]
    with pytest.raises(MfpoError, match=r"columns images, note, prompt, but trl, .* needs chosen, rejected"):
        build(plain.remove_columns(["chosen", "rejected"]), tmp_path / "none", SETTINGS)


def test_a_file_that_gave_no_record_can_be_mended(pairs: Path, tmp_path: Path) -> None:
    good = pairs.read_text()
    pairs.write_text(good.replace("A dog.", ""))
    with pytest.raises(MfpoError, match="none of the 6 rows"):
        build(open_source(pairs), tmp_path / "out", SETTINGS, everywhere)
    pairs.write_text(good)
    assert len(build(open_source(pairs), tmp_path / "out", SETTINGS, everywhere)) == 6
