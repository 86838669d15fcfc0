"""Rows from Parquet, JSONL and JSON files, from folders and from the hub."""

import gzip
import json
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError
from PIL import Image

from mfpo.errors import MfpoError, RecordError
from mfpo.images import encode_image
from mfpo.sources import files, open_source

RED = encode_image(Image.new("RGB", (4, 4), "red"))["bytes"]
GOOD = {"id": "a", "image": "red.png", "question": "What is there?", "chosen": "A dog.", "rejected": "A cat."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "red.png").write_bytes(RED)
    return tmp_path


def write(file: Path, *rows: object) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def table(file: Path, *rows: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), file, **options)
    return file


def ids(path: str | Path) -> list[str]:
    source = open_source(path)
    return [source.record(row, number)["id"] for number, row in enumerate(source)]


@pytest.mark.parametrize("start", ["", "\ufeff", "\n  "])
def test_a_json_array(start: str, folder: Path) -> None:
    (folder / "a.json").write_text(start + json.dumps([GOOD, GOOD | {"id": "b"}], indent=1), encoding="utf-8")
    assert ids(folder / "a.json") == ["a", "b"]


def test_jsonl_that_is_called_json(folder: Path) -> None:
    assert ids(write(folder / "a.json", GOOD, GOOD | {"id": "b"})) == ["a", "b"]


def test_a_fault_in_a_json_array_is_one_bad_row(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps([GOOD, 7, GOOD | {"chosen": "\ud800"}, GOOD]))
    source = open_source(folder / "a.json")
    rows = list(source)
    assert [source.id(row, number) for number, row in enumerate(rows)] == ["a", "1", "2", "a"]
    with pytest.raises(RecordError, match=r"entry 2 of a\.json is a int, not a JSON object"):
        source.record(rows[1], 1)
    with pytest.raises(RecordError, match=r"entry 3 of a\.json is not valid JSON"):
        source.record(rows[2], 2)


@pytest.mark.parametrize("text", ["[", '[{"id": 1}', "[" * 100_000])
def test_a_broken_json_array(text: str, folder: Path) -> None:
    (folder / "a.json").write_text(text)
    with pytest.raises(MfpoError, match=r"a\.json.*(not valid JSON|brackets nested too deeply)"):
        open_source(folder / "a.json")


def test_a_folder_gives_parquet_before_jsonl_before_json_arrays(folder: Path) -> None:
    (folder / "c.json").write_text(json.dumps([GOOD | {"id": "json"}]))
    (folder / "dataset_info.json").write_text('{"description": "no rows"}')
    assert ids(folder) == ["json"]
    write(folder / "b.jsonl", GOOD | {"id": "jsonl"})
    assert ids(folder) == ["jsonl"]
    table(folder / "a1.parquet", GOOD | {"id": "parquet 1"})
    table(folder / "a0.parquet", GOOD | {"id": "parquet 0"})
    assert ids(folder) == ["parquet 0", "parquet 1"]


def test_what_is_hidden_is_not_read(folder: Path) -> None:
    for name in (".ipynb_checkpoints/b.jsonl", ".git/c.jsonl", "__MACOSX/d.jsonl", "x/.cache/e.jsonl", "._a.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write(folder / name, GOOD | {"id": name})
    with pytest.raises(MfpoError, match=r"no \.parquet or \.jsonl files"):
        ids(folder)
    write(folder / "a.jsonl", GOOD)
    assert ids(folder) == ["a"]
    hidden = folder / ".git"
    (hidden / "red.png").write_bytes(RED)
    assert ids(hidden) == [".git/c.jsonl"], "a hidden folder that is given is read"


def test_mfpos_own_reports_are_no_data(folder: Path) -> None:
    """They lie beside made_by.json; a user's file may have the same name."""
    (folder / "own").mkdir()
    write(folder / "own" / "train.jsonl", GOOD)
    write(folder / "own" / "rejected_rows.jsonl", GOOD | {"id": "b"})
    write(folder / "left_out.jsonl", GOOD | {"id": "c"})
    assert ids(folder) == ["c", "b", "a"]
    (folder / "own" / "made_by.json").write_text("{}")
    write(folder / "own" / "left_out.jsonl", GOOD | {"id": "d"})
    assert ids(folder) == ["c", "a"]
    assert [file.name for file in files.data_files(folder / "own")] == ["train.jsonl"]


def test_an_array_called_jsonl(folder: Path) -> None:
    (folder / "a.jsonl").write_text(json.dumps([GOOD, GOOD | {"id": "b"}]))
    assert ids(folder / "a.jsonl") == ["a", "b"]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.json.gz"])
def test_gzip(name: str, folder: Path) -> None:
    lines = "".join(json.dumps(GOOD | {"id": id}) + "\n" for id in "ab")
    array = json.dumps([GOOD, GOOD | {"id": "b"}])
    for text in (lines, array):
        (folder / name).write_bytes(gzip.compress(text.encode()))
        assert ids(folder / name) == ["a", "b"]
    (folder / name).rename(folder / "sub.jsonl.gz")
    assert ids(folder) == ["a", "b"]


def test_a_gzipped_file_cut_or_changed_at_any_byte_is_one_line(folder: Path) -> None:
    whole = gzip.compress("".join(json.dumps(GOOD | {"id": f"{n}"}) + "\n" for n in range(20)).encode())
    file = folder / "a.jsonl.gz"
    refused = 0
    for place in range(1, len(whole), 2):
        for data in (whole[:place], whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :]):
            file.write_bytes(data)
            try:
                read = ids(file)
            except MfpoError as error:
                reason = str(error)
            else:
                assert read == [f"{n}" for n in range(20)]
                continue
            assert "\n" not in reason
            assert reason.startswith((f"{file}: ", "line "))
            refused += 1
    assert refused > len(whole) * 0.8


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.jsonl", json.dumps(GOOD, indent=1).encode(), "give each object on a line of its own, or a JSON array"),
        (
            "a.json",
            json.dumps({"data": [GOOD]}).encode(),
            "columns data, but jsonl, the nearest format, also needs id, ",
        ),
        ("a.json", json.dumps({"data": [GOOD]}, indent=1).encode(), "give each object on a line of its own"),
        ("a.csv", b"id,image\n1,red.png\n", "CSV and TSV files are not read"),
        ("a.tsv", b"index\timage\n1\t/9j/" + b"A" * 300_000, "CSV and TSV files are not read"),
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "fetch it with `git lfs pull`"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "fetch it with `git lfs pull`"),
        ("a.jsonl", b"<!DOCTYPE html><html>", "is a page of HTML or XML"),
        ("a.parquet", b"\n<html>", "is a page of HTML or XML"),
        ("a.jsonl", b"PK\x03\x04", "is a zip archive; unpack it"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), "is a .gz file; give it a name that ends in .gz"),
        ("a.jsonl", b"PAR1 and more", "is a .parquet file; give it a name that ends in .parquet"),
        ("a.jsonl.gz", b"{}", "is not gzipped; give it a name without .gz"),
        ("a.jsonl", json.dumps(GOOD).encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        ("a.jsonl", json.dumps({"k" * 1000 + str(n): 1 for n in range(999)}).encode(), " and 996 more, but"),
    ],
)
def test_a_file_that_is_something_else_is_called_by_its_name(name: str, data: bytes, words: str, folder: Path) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(MfpoError) as error:
        open_source(folder / name)
    assert str(error.value).startswith(f"{folder / name}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 2000


def test_a_byte_order_mark_is_no_part_of_the_first_row(folder: Path) -> None:
    (folder / "a.jsonl").write_text("\ufeff" + json.dumps(GOOD) + "\n", encoding="utf-8")
    assert ids(folder / "a.jsonl") == ["a"]


def test_a_parquet_file_that_breaks_off_inside(folder: Path) -> None:
    rows = [GOOD | {"id": f"{number:05}" * 50} for number in range(200)]
    file = table(folder / "a.parquet", *rows, row_group_size=96, compression="none", use_dictionary=False)
    data = bytearray(file.read_bytes())
    second = data.index(b"00096" * 50)
    data[second - 60 : second] = b"\xff" * 60  # the header of a page of the second group
    file.write_bytes(data)
    with pytest.raises(MfpoError, match=r"a\.parquet: broken after 96 rows \("):
        list(open_source(file))


def test_a_parquet_text_that_is_no_utf8_is_one_bad_row(folder: Path) -> None:
    columns = {name: pa.array([value.encode(), b"\xff", value.encode()]) for name, value in GOOD.items()}
    texts = pa.table({name: column.view(pa.string()) for name, column in columns.items()})
    pq.write_table(texts, folder / "a.parquet")
    source = open_source(folder / "a.parquet")
    rows = list(source)
    assert [source.id(row, number) for number, row in enumerate(rows)] == ["a", "1", "a"]
    with pytest.raises(RecordError, match=r"row 1 of a\.parquet cannot be read \('utf-8' codec"):
        source.record(rows[1], 1)


def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset `owner/pairs` in the hub's cache, as huggingface_hub lays it out: each file a link to its blob."""
    blobs, snapshot = cache / "blobs", cache / "snapshots" / "5f3a"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, (name, data) in enumerate({"pairs.jsonl": json.dumps(GOOD).encode(), "red.png": RED}.items()):
        (blobs / str(number)).write_bytes(data)
        (snapshot / name).symlink_to(blobs / str(number))

    def download(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        assert (name, repo_type) == ("owner/pairs", "dataset")
        assert {"*.parquet", "*.json", "*.jsonl", "*.jpg", "*.png", "*.JPG", "README.md"} <= set(allow_patterns)
        assert not any(pattern.endswith((".py", "*")) for pattern in allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(files, "snapshot_download", download)
    return snapshot


def test_a_dataset_of_the_hub_with_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(tmp_path / "datasets--owner--pairs", monkeypatch)
    source = open_source("owner/pairs")
    (row,) = source
    record = source.record(row, 0)
    assert record["images"] == [{"bytes": RED, "path": "red.png"}]
    assert record["source"] == {"dataset": "owner/pairs", "row": 0}


def test_links_out_of_the_datasets_cache_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = hub(tmp_path / "datasets--owner--pairs", monkeypatch)
    (tmp_path / "secret.png").write_bytes(RED)
    (snapshot / "red.png").unlink()
    (snapshot / "red.png").symlink_to(tmp_path / "secret.png")
    source = open_source("owner/pairs")
    with pytest.raises(RecordError, match=r"image 'red\.png' leaves the image folder"):
        source.record(next(iter(source)), 0)


def test_what_is_on_this_disk_is_not_asked_of_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(folder / "cache", monkeypatch)
    (folder / "owner" / "pairs").mkdir(parents=True)
    (folder / "owner" / "pairs" / "red.png").write_bytes(RED)
    write(folder / "owner" / "pairs" / "a.jsonl", GOOD | {"id": "local"})
    monkeypatch.chdir(folder)
    assert ids("owner/pairs") == ["local"]


@pytest.mark.parametrize(
    "failure",
    [
        RepositoryNotFoundError(
            "404\nnot found", response=httpx.Response(404, request=httpx.Request("GET", "https://hub"))
        ),
        LocalEntryNotFoundError("no network\nand nothing in the cache"),
    ],
)
def test_a_name_that_the_hub_does_not_give(failure: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(files, "snapshot_download", download)
    with pytest.raises(
        MfpoError,
        match=r"^owner/nothing: no such file or folder, and it could not be downloaded from the Hub \([^\n]+$",
    ):
        open_source("owner/nothing")


@pytest.mark.parametrize("name", ["data/pairs.jsonl", "data/pairs.parquet", "pairs", "a/b/c", "../pairs"])
def test_a_missing_file_is_not_taken_for_a_name_of_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "snapshot_download", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MfpoError, match="no such file"):
        open_source(name)
