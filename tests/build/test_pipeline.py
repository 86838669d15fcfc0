"""`build` from end to end: every row accounted for, and a resumed run equal to an uninterrupted one."""

import io
import json
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import mfpo
from fixtures import killed_runs
from fixtures.processes import start
from mfpo.build.engine import Threads
from mfpo.build.noise import add_noise
from mfpo.build.pipeline import build_into
from mfpo.build.regions import Search, open_segmenter
from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.build.steps import build_record, generator
from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError, RecordError, SettingError
from mfpo.images import decode_image, encode_image
from mfpo.masks import encode_mask
from mfpo.records import NamedMask, Origin, SourceRecord, new_record
from mfpo.report.dataset_page import inspect
from mfpo.shards import keep_first
from mfpo.sources import open_source

HEIGHT, WIDTH = 24, 36
SMALL = BuildSettings(shard_size=4)


def dog_mask() -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[4:12, 6:18] = True
    return mask


class Drawn:
    """A source of `count` rows, each a picture of noise with a dog mask."""

    name = "drawn"

    def __init__(self, count: int = 10, *, images: int = 1, chosen: str = "A dog on a lawn.") -> None:
        self.rows: list[dict[str, Any]] = [{"id": f"r{i}", "chosen": chosen} for i in range(count)]
        self.images = images

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    def id(self, row: dict[str, Any], number: int) -> str:
        return str(row["id"])

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        pixels = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        return new_record(
            id=row["id"],
            images=[encode_image(Image.fromarray(pixels))] * self.images,
            question="What is there?",
            chosen=row["chosen"],
            rejected="A cat.",
            objects=[NamedMask(name="dog", mask=encode_mask(dog_mask()))],
            source=Origin(dataset=self.name, row=number),
        )


def pixels(image: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_noise_is_inside_the_region_alone_and_the_original_untouched(tmp_path: Path) -> None:
    source = Drawn(2)
    build_into(source, tmp_path / "out", SMALL, DatasetRegions())
    for number, row in enumerate(pq.read_table(tmp_path / "out" / "train-00000.parquet").to_pylist()):
        original = source.record(source.rows[number], number)["images"][0]["bytes"]
        assert row["images"][0]["bytes"] == original
        before, after = pixels(row["images"][0]), pixels(row["rejected_images"][0])
        np.testing.assert_array_equal(after[~dog_mask()], before[~dog_mask()])
        assert (after[dog_mask()] != before[dog_mask()]).any(axis=1).mean() > 0.9
        assert row["corruption"] == {
            "kind": "region", "schedule": "sigmoid", "step": 500, "seed": 0, "fallback": False,
        }  # fmt: skip


def test_without_a_region_the_whole_image_is_noised_and_says_so(tmp_path: Path) -> None:
    summary = build_into(Drawn(3, chosen="A tree on a lawn."), tmp_path / "out", SMALL, DatasetRegions())
    assert (summary["fallback"], summary["area_destroyed"]) == (3, 1.0)
    row = read_dataset(tmp_path / "out")[0]
    assert row["regions"] == []
    assert row["corruption"]["fallback"] is True
    assert row["corruption"]["kind"] == "region"


def test_noise_covers_the_union_of_the_regions() -> None:
    source = Drawn(1, chosen="A dog next to a cat.")
    record = source.record(source.rows[0], 0)
    cat = np.roll(dog_mask(), 16, axis=1)
    record["objects"].append(NamedMask(name="cat", mask=encode_mask(cat)))
    built, area = build_record(record, SMALL, DatasetRegions())
    before, after = (np.asarray(decode_image(built[key][0])) for key in ("images", "rejected_images"))
    changed = (before != after).any(axis=2)
    assert {region["keyword"] for region in built["regions"]} == {"dog", "cat"}
    assert not changed[~(dog_mask() | cat)].any()
    assert changed[dog_mask()].mean() > 0.9
    assert changed[cat].mean() > 0.9
    assert area == pytest.approx((dog_mask() | cat).mean())


def test_each_image_of_a_record_is_searched() -> None:
    def second_only(searches: list[Search]) -> list:
        found = DatasetRegions()([replace(search, number=0) for search in searches])
        return [
            [region | {"image": search.number} for region in regions] if search.number == 1 else []
            for search, regions in zip(searches, found, strict=True)
        ]

    source = Drawn(1, images=2)
    built, area = build_record(source.record(source.rows[0], 0), SMALL, second_only)
    changed = [
        (pixels(before) != pixels(after)).any()
        for before, after in zip(built["images"], built["rejected_images"], strict=True)
    ]
    assert changed == [False, True]
    assert built["regions"][0]["image"] == 1
    assert area == pytest.approx(dog_mask().mean() / 2)


def test_masks_of_another_size_set_the_row_aside() -> None:
    source = Drawn(1)
    record = source.record(source.rows[0], 0)
    record["objects"] = [NamedMask(name="dog", mask=encode_mask(dog_mask().T))]
    with pytest.raises(RecordError, match=r"image is 24 x 36, but its masks are \[36, 24\]"):
        build_record(record, SMALL, DatasetRegions())


@pytest.mark.parametrize(("corruption", "area"), [("global", 1.0), ("random", 0.2), ("crop", 0.9)])
def test_the_variants_need_no_regions(corruption: str, area: float, tmp_path: Path) -> None:
    summary = build_into(Drawn(8), tmp_path / "out", BuildSettings(corruption=corruption))
    assert summary["fallback"] == 0
    assert summary["area_destroyed"] == pytest.approx(area, abs=0.1)
    assert read_dataset(tmp_path / "out")[0]["corruption"]["kind"] == corruption


def test_the_noise_depends_on_seed_and_id_but_not_on_shards_or_order(tmp_path: Path) -> None:
    def rejected(name: str, source: Drawn, settings: BuildSettings) -> dict[str, bytes]:
        build_into(source, tmp_path / name, settings, DatasetRegions())
        rows = read_dataset(tmp_path / name)
        return {row["id"]: row["rejected_images"][0].tobytes() for row in rows}

    one = rejected("one", Drawn(10), BuildSettings(shard_size=100))
    assert rejected("many", Drawn(10), BuildSettings(shard_size=3)) == one
    assert rejected("fewer", Drawn(5), BuildSettings()) == {f"r{i}": one[f"r{i}"] for i in range(5)}
    other_seed = rejected("seed", Drawn(10), BuildSettings(seed=1))
    assert all(other_seed[name] != one[name] for name in one)
    assert len(set(one.values())) == 10


def test_a_run_that_stops_goes_on_without_redoing_whole_shards(content: Callable, tmp_path: Path) -> None:
    def stop_at(limit: int) -> Any:
        def rows(source: Iterable) -> Iterator:
            for number, row in enumerate(source):
                if number == limit:
                    raise KeyboardInterrupt
                yield row

        return rows

    broken = Drawn(14)
    broken.rows[2]["chosen"] = ""
    broken.rows[9]["id"] = "r1"
    build_into(broken, tmp_path / "whole", SMALL, DatasetRegions())
    with pytest.raises(KeyboardInterrupt):
        build_into(broken, tmp_path / "out", SMALL, DatasetRegions(), progress=stop_at(10))
    assert not (tmp_path / "out").exists()
    made = []
    record = broken.record
    broken.record = lambda row, number: made.append(number) or record(row, number)  # type: ignore[method-assign]
    build_into(broken, tmp_path / "out", SMALL, DatasetRegions())
    assert sorted(made) == [8, 10, 11, 12, 13]  # rows 0 to 7 lie in two whole shards, row 9 repeats an id
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert [row["reason"] for row in lines(tmp_path / "out" / "rejected_rows.jsonl")] == [
        "column 'chosen' is empty",
        "id 'r1' is that of an earlier row",
    ]


def all_at_once(shards: Iterator, *given: Any) -> Iterator:
    """An engine that makes all shards at the same time, as a cluster does, and has the last one ready first."""
    return iter([next(Threads(1)(iter([shard]), *given)) for shard in reversed(list(shards))])


def repeated(random: np.random.Generator) -> tuple[Drawn, list[int], list[int]]:
    """A source with ids that come again and rows without an answer; which rows are records, which repeat one."""
    source = Drawn(int(random.integers(5, 16)))
    kept: dict[str, int] = {}
    repeats = []
    for number, row in enumerate(source.rows):
        row["id"] = f"r{random.integers(0, 5)}"
        row["chosen"] *= int(random.random() < 0.6)
        if row["id"] in kept:
            repeats.append(number)
        elif row["chosen"]:
            kept[row["id"]] = number
    return source, list(kept.values()), repeats


@pytest.mark.parametrize("seed", range(12))
def test_the_first_record_of_an_id_is_kept_whatever_the_engine(seed: int, content: Callable, tmp_path: Path) -> None:
    source, kept, repeats = repeated(np.random.default_rng(seed))
    build_into(source, tmp_path / "out", SMALL, DatasetRegions())
    assert [row["source"]["row"] for row in read_dataset(tmp_path / "out")] == kept
    set_aside = lines(tmp_path / "out" / "rejected_rows.jsonl")
    assert sorted([row["row"] for row in set_aside] + kept) == list(range(len(source.rows)))
    assert [row["row"] for row in set_aside if row["reason"].endswith("is that of an earlier row")] == repeats
    for name, engine in (("three", Threads(3)), ("at once", all_at_once)):
        build_into(source, tmp_path / name, SMALL, DatasetRegions(), engine=engine)
        assert content(tmp_path / name) == content(tmp_path / "out")


def test_a_run_killed_while_it_sets_repeated_ids_aside_ends_with_the_same_files(
    content: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _, _ = repeated(np.random.default_rng(2))
    build_into(source, tmp_path / "whole", SMALL, DatasetRegions())
    for number in range(3):
        with monkeypatch.context() as patched:
            seen: list[Path] = []

            def stop(shard: Path, ids: set[str], number: int = number, seen: list[Path] = seen) -> None:
                keep_first(shard, ids)
                seen.append(shard)
                if len(seen) > number:
                    raise KeyboardInterrupt

            patched.setattr("mfpo.build.notes.keep_first", stop)
            try:
                build_into(source, tmp_path / "out", SMALL, DatasetRegions(), engine=all_at_once)
            except KeyboardInterrupt:
                continue
            break
    else:
        build_into(source, tmp_path / "out", SMALL, DatasetRegions(), engine=all_at_once)
    assert seen, "no shard had to be rewritten"
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_the_summary_says_what_of_the_dataset_was_left_out(tmp_path: Path) -> None:
    source = Drawn(2)
    source.left_out = ["split test (1 file)"]  # type: ignore[attr-defined]
    assert build_into(source, tmp_path / "out", SMALL, DatasetRegions())["left_out"] == ["split test (1 file)"]
    assert build_into(Drawn(2), tmp_path / "other", SMALL, DatasetRegions())["left_out"] == []


def test_a_process_killed_twice_ends_with_the_same_bytes(
    write_pairs: Callable, content: Callable, tmp_path: Path
) -> None:
    write_pairs(tmp_path / "pairs.parquet", 160)
    out = tmp_path / "out"

    def notes() -> dict[Path, int]:
        """The finished shards, and when they were written."""
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("train-*.json")}

    for stop in (2, 9):
        before = notes()
        process = start(killed_runs.build, tmp_path / "pairs.parquet", out)
        while process.is_alive() and len(notes()) < stop:
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert notes().items() >= before.items(), "a finished shard was done again"
    assert 9 <= len(notes()) < 20
    killed_runs.build(tmp_path / "pairs.parquet", out)
    killed_runs.build(tmp_path / "pairs.parquet", tmp_path / "whole")
    assert content(out) == content(tmp_path / "whole")


def test_workers_change_nothing(write_pairs: Callable, content: Callable, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet")
    source = open_source(tmp_path / "pairs.parquet")
    build_into(source, tmp_path / "one", SMALL, DatasetRegions())
    build_into(source, tmp_path / "five", SMALL, DatasetRegions(), engine=Threads(5))
    assert content(tmp_path / "five") == content(tmp_path / "one")


class Heavy(Drawn):
    """Each row brings two images of 200 kB, whose bytes no other row shares."""

    def __init__(self, count: int) -> None:
        random = np.random.default_rng(0)
        noise = (Image.fromarray(random.integers(0, 256, (256, 256, 3), dtype=np.uint8)) for _ in range(2))
        self.count, self.encoded = count, [encode_image(image, "png")["bytes"] for image in noise]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number in range(self.count):  # a decoder ignores what follows the image
            yield {"id": f"r{number}", "images": [data + str(number).encode() for data in self.encoded]}

    def record(self, row: dict[str, Any], number: int) -> SourceRecord:
        image, rejected = ({"bytes": data, "path": None} for data in row["images"])
        texts = {"question": "What is there?", "chosen": "A dog.", "rejected": "A cat."}
        origin = Origin(dataset=self.name, row=number)
        return new_record(id=row["id"], images=[image], **texts, source=origin) | {"rejected_images": [rejected]}


def test_memory_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    def status(name: str) -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) // 1024

    def peak(records: int) -> int:
        """MiB that the build takes at most."""
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        settings = BuildSettings(corruption="given", shard_size=16)
        summary = build_into(Heavy(records), tmp_path / str(records), settings)
        assert summary["written"] == records
        return status("VmHWM") - before

    peak(32)
    assert peak(320) < peak(33) + 20  # of 120 MiB


@pytest.mark.parametrize("corruption", ["blur", "black"])
def test_regions_can_be_blurred_or_painted_black(corruption: str) -> None:
    source = Drawn(1)
    settings = BuildSettings(corruption=corruption)
    built, area = build_record(source.record(source.rows[0], 0), settings, DatasetRegions())
    before, after = pixels(built["images"][0]), pixels(built["rejected_images"][0])
    assert area == pytest.approx(dog_mask().mean())
    np.testing.assert_array_equal(after[~dog_mask()], before[~dog_mask()])
    if corruption == "black":
        assert not after[dog_mask()].any()
    else:
        assert 0 < after[dog_mask()].std() < 0.5 * before[dog_mask()].std()


def test_regions_grow_by_mask_dilate() -> None:
    source = Drawn(1)
    record = source.record(source.rows[0], 0)
    built, area = build_record(record, BuildSettings(corruption="black", mask_dilate=3), DatasetRegions())
    grown = np.zeros_like(dog_mask())
    grown[1:15, 3:21] = True
    np.testing.assert_array_equal(pixels(built["rejected_images"][0])[grown], 0)
    assert area == pytest.approx(grown.mean())


@pytest.mark.parametrize("image_format", ["webp", "png"])
def test_rejected_images_are_stored_without_loss(image_format: str) -> None:
    source = Drawn(1)
    settings = BuildSettings(image_format=image_format)
    built, _ = build_record(source.record(source.rows[0], 0), settings, DatasetRegions())
    stored = Image.open(io.BytesIO(built["rejected_images"][0]["bytes"]))
    assert stored.format == image_format.upper()
    before = pixels(built["images"][0])
    expected = add_noise(before, dog_mask(), step=500, schedule="sigmoid", rng=generator(0, "r0"))
    np.testing.assert_array_equal(np.asarray(stored), expected)


def test_a_record_whose_image_breaks_off_does_not_spoil_the_others(write_pairs: Callable, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs.parquet")
    summary = build_into(open_source(tmp_path / "pairs.parquet"), tmp_path / "out", BuildSettings(), DatasetRegions())
    assert (summary["read"], summary["written"]) == (14, 11)
    assert [row["row"] for row in lines(tmp_path / "out" / "rejected_rows.jsonl")] == [2, 6, 9]
    assert summary["reasons"] == {
        "column 'chosen' is empty": 1, "image cannot be read": 1, "id is that of an earlier row": 1,
    }  # fmt: skip
    assert set(summary["stage_seconds"]) == {"read", "keywords", "regions", "noise", "write"}


def test_bad_rows_are_set_aside_and_counted(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (20, 20), "red").save(images / "dog.png")
    (images / "broken.png").write_bytes(b"no picture")
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "secret.png")
    good = {"id": "a", "image": "dog.png", "question": "What?", "chosen": "A dog.", "rejected": "A cat."}
    changes = [
        {"id": "missing", "image": "no.png"},
        {"id": "missing too", "image": "nope.png"},
        {"id": "unreadable", "image": "broken.png"},
        {"id": "no chosen", "chosen": None},
        {"id": "empty", "rejected": " "},
        {"id": "equal", "chosen": "A cat."},
        {"id": "dots", "image": "../secret.png"},
        {"id": "absolute", "image": str(tmp_path / "secret.png")},
        {"id": "link", "image": "link.png"},
        {"id": "loop", "chosen": "A dog and a cat. " * 2000},
        {"id": "a"},
    ]
    file = tmp_path / "data.jsonl"
    rows = [
        json.dumps(good),
        *(json.dumps(good | change) for change in changes),
        '{"id": "cut',
        json.dumps(good | {"id": "b"}),
    ]
    file.write_text("\n".join(rows))
    source = open_source(file, images=images)
    summary = build_into(source, tmp_path / "out", BuildSettings(corruption="global", shard_size=3))
    set_aside = lines(tmp_path / "out" / "rejected_rows.jsonl")
    assert [row["id"] for row in set_aside] == [*(change["id"] for change in changes), "12"]
    assert [row["row"] for row in set_aside] == list(range(1, 13))
    assert (summary["read"], summary["written"], summary["set_aside"]) == (14, 2, 12)
    assert summary["reasons"] == {
        f"image leaves the image folder {images}": 3,
        f"image is not in {images}": 2,
        "image cannot be read": 1,
        "column 'chosen' is missing": 1,
        "column 'rejected' is empty": 1,
        "columns 'chosen' and 'rejected' are equal, so they express no preference": 1,
        "an answer of N characters names things N times, more than the limit of N; if it repeats itself, cut it": 1,
        "id is that of an earlier row": 1,
        "line N of data.jsonl is not valid JSON": 1,
    }
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert read_dataset(tmp_path / "out")["id"][:] == ["a", "b"]


def test_when_no_row_can_be_used_the_reasons_can_be_read(tmp_path: Path) -> None:
    source = Drawn(3, chosen="A cat.")
    with pytest.raises(MfpoError, match=r"none of the 3 rows of drawn became a record: 3 x columns") as caught:
        build_into(source, tmp_path / "out", SMALL, DatasetRegions())
    rejected = Path(str(caught.value).rpartition("see ")[2])
    assert len(lines(rejected)) == 3
    assert not (tmp_path / "out").exists()
    # Once the source is mended, nothing of the failed run is left to go on from.
    assert build_into(Drawn(3), tmp_path / "out", SMALL, DatasetRegions())["written"] == 3


def test_a_region_build_needs_a_segmenter(tmp_path: Path) -> None:
    with pytest.raises(MfpoError, match="--regions dataset"):
        build_into(Drawn(1), tmp_path / "out", SMALL)


@pytest.mark.parametrize("wrong", [{"noise_step": 1000}, {"noise_step": -1}, {"seed": -1}, {"shard_size": 0}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingError, match=next(iter(wrong))):
        BuildSettings(**wrong)


def test_sixteen_photos(reference_data: Path, tmp_path: Path) -> None:
    photos = reference_data / "photos"
    source = open_source(photos / "preferences.jsonl", images=photos)
    segmenter = open_segmenter(f"coco={photos / 'instances.json'}")
    summary = build_into(source, tmp_path / "out", BuildSettings(), segmenter)
    assert (summary["written"], summary["set_aside"]) == (16, 0)
    assert 16 - summary["fallback"] >= 12
    dataset = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == 16
    for row in dataset:
        original, rejected = (np.asarray(row[key][0].convert("RGB")) for key in ("images", "rejected_images"))
        assert row["corruption"]["fallback"] == (row["regions"] == [])
        if row["regions"]:
            mask = np.any([coco_mask.decode(region["mask"]) for region in row["regions"]], axis=0)
            np.testing.assert_array_equal(rejected[~mask], original[~mask])
            assert (rejected[mask] != original[mask]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["a", None]}, "row 1: column id is empty"),
        ({"id": ["a", "b"], "images": [[1], [1]], "rejected_images": [[1], []]}, "row 1: column rejected_images"),
    ],
)
def test_a_dataset_with_holes_is_refused(columns: dict[str, list], message: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(columns), tmp_path / "train-00000.parquet")
    with pytest.raises(MfpoError, match=message):
        read_dataset(tmp_path, ("id",))


def test_inpainting_fills_the_regions_from_around_them():
    """On a picture of one colour the filled region has that colour again; outside nothing changes."""
    source = Drawn(1)
    plain = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    plain[dog_mask()] = 200
    record = source.record(source.rows[0], 0) | {"images": [encode_image(Image.fromarray(plain))]}
    built, area = build_record(record, BuildSettings(corruption="inpaint"), DatasetRegions())
    np.testing.assert_allclose(pixels(built["rejected_images"][0]), 90, atol=8)  # of the dog's 200
    assert area == dog_mask().mean()


def given(folder: Path, **columns: Any) -> Path:
    """A file with a row whose rejected image is black; `columns` go over it."""
    for name, value in (("m", 90), ("edited", 0)):
        Image.new("RGB", (WIDTH, HEIGHT), (value,) * 3).save(folder / f"{name}.png")
    row = {"id": "a", "image": "m.png", "question": "What is there?", "chosen": "A dog.", "rejected": "A cat."}
    row |= {"rejected_images": ["edited.png"], "counter": "Nothing."} | columns
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "pairs.jsonl"


def test_given_rejected_images_come_as_they_are_with_their_right_answer(tmp_path):
    [record] = mfpo.build(given(tmp_path), tmp_path / "out", BuildSettings(corruption="given")).with_format("arrow")
    record = record.to_pylist()[0]
    assert record["rejected_images"][0]["bytes"] == (tmp_path / "edited.png").read_bytes()
    assert record["counter"] == [{"role": "assistant", "content": "Nothing."}]
    assert (record["corruption"]["kind"], record["regions"]) == ("given", [])
    assert json.loads((tmp_path / "out/summary.json").read_text())["area_destroyed"] == 1.0


def test_a_given_image_of_another_size_is_inspected(tmp_path):
    Image.new("RGB", (8, 9)).save(tmp_path / "small.png")
    mfpo.build(given(tmp_path, rejected_images=["small.png"]), tmp_path / "out", BuildSettings(corruption="given"))
    inspect(tmp_path / "out", tmp_path / "page.html", limit=1)
    assert "100 % changed" in (tmp_path / "page.html").read_text()


def test_another_corruption_makes_its_own_and_knows_no_right_answer(tmp_path):
    [record] = mfpo.build(given(tmp_path), tmp_path / "out", BuildSettings(corruption="global"))
    assert record["counter"] is None


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"rejected_images": None}, "column 'rejected_images' is empty, but corruption=given"),
        ({"rejected_images": ["edited.png"] * 2}, "has 2 images, but 'images' has 1"),
        ({"rejected_images": ["m.png"]}, "shows the same as 'images'"),
        ({"rejected_images": ["../m.png"]}, "leaves the image folder"),
        ({"counter": [{"role": "user", "content": "Nothing."}]}, "column 'counter' has messages (user)"),
    ],
)
def test_a_given_image_that_is_none_is_told(tmp_path, columns, fault):
    with pytest.raises(MfpoError, match="none of the 1 rows"):
        mfpo.build(given(tmp_path, **columns), tmp_path / "out", BuildSettings(corruption="given"))
    [file] = tmp_path.rglob("rejected_rows.jsonl")
    assert fault in lines(file)[0]["reason"]
