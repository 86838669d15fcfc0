"""Each public format gives the same record; each broken row says what is wrong with it."""

import base64
import io
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mfpo.errors import MfpoError, RecordError
from mfpo.images import encode_image
from mfpo.records import SourceRecord
from mfpo.sources import open_source
from mfpo.sources.rows import read_image, read_messages, read_objects

GOOD = {"id": "a", "image": "dog.png", "question": "What is there?", "chosen": "A dog.", "rejected": "A cat."}


def png(color: str = "red", mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).convert(mode).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder, and one picture outside of it."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "dog.png").write_bytes(png())
    (images / "broken.gif").write_bytes(b"GIF89a")
    (images / "text.png").write_text("no picture")
    (tmp_path / "secret.png").write_bytes(png())
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    return images


def jsonl(folder: Path, *lines: object) -> Path:
    file = folder.parent / "data.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return file


def first_error(file: Path, folder: Path, row: int = 0) -> str:
    source = open_source(file, images=folder)
    with pytest.raises(RecordError) as caught:
        source.record(list(source)[row], row)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_jsonl_row(folder: Path) -> None:
    source = open_source(jsonl(folder, GOOD), images=folder)
    record = source.record(next(iter(source)), 0)
    assert record == SourceRecord(
        id="a",
        images=[{"bytes": (folder / "dog.png").read_bytes(), "path": "dog.png"}],
        prompt=[{"role": "user", "content": "What is there?"}],
        chosen=[{"role": "assistant", "content": "A dog."}],
        rejected=[{"role": "assistant", "content": "A cat."}],
        rejected_images=None,
        counter=None,
        claims=None,
        objects=None,
        source={"dataset": "data.jsonl", "row": 0},
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "nothing.png"}, "image 'nothing.png' is not in"),
        ({"image": "broken.gif"}, "image 'broken.gif' cannot be read"),
        ({"image": "text.png"}, "image 'text.png' cannot be read"),
        ({"image": "../secret.png"}, "image '../secret.png' leaves the image folder"),
        ({"image": "link.png"}, "image 'link.png' leaves the image folder"),
        ({"image": "/etc/hostname"}, "image '/etc/hostname' leaves the image folder"),
        ({"image": None}, "column 'image' is missing"),
        ({"image": ""}, "column 'image' is missing"),
        ({"chosen": None}, "column 'chosen' is missing"),
        ({"chosen": "  "}, "column 'chosen' is empty"),
        ({"rejected": ""}, "column 'rejected' is empty"),
        ({"chosen": 3}, "column 'chosen' is int, but must be a string"),
        ({"chosen": "A cat. "}, "columns 'chosen' and 'rejected' are equal"),
        ({"id": None}, "column 'id' is missing"),
        ({"id": {"a": 1}}, "column 'id' is dict, but must be a string or a number"),
        ({"image": []}, "column 'image' is empty"),
        ({"question": "<image>"}, "column 'question' is empty"),
    ],
)
def test_a_row_with_one_fault(change: dict, reason: str, folder: Path) -> None:
    file = jsonl(folder, GOOD, GOOD | change)
    assert reason in first_error(file, folder, row=1)


def test_a_row_without_the_key_chosen(folder: Path) -> None:
    file = jsonl(folder, {key: value for key, value in GOOD.items() if key != "chosen"}, GOOD)
    assert first_error(file, folder) == "column 'chosen' is missing"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"id": "b", "image"', "line 2 of data.jsonl is not valid JSON"),
        ("[1, 2]", "line 2 of data.jsonl is a list, not a JSON object"),
        ('{"id": "b", "chosen": "half a pair \\ud800"}', "line 2 of data.jsonl is not valid JSON"),
    ],
)
def test_a_broken_line_is_one_bad_row(line: str, reason: str, folder: Path) -> None:
    file = jsonl(folder, GOOD, line, GOOD)
    assert reason in first_error(file, folder, row=1)
    assert len(list(open_source(file, images=folder))) == 3


def test_bytes_that_are_no_utf8_are_one_bad_row(folder: Path) -> None:
    file = jsonl(folder, GOOD)
    file.write_bytes(file.read_bytes() + b'{"id": "\xff"}\n')
    assert "line 2 of data.jsonl is not UTF-8 text" in first_error(file, folder, row=1)


def test_blank_lines_are_no_rows(folder: Path) -> None:
    assert len(list(open_source(jsonl(folder, GOOD, "", GOOD, ""), images=folder))) == 2


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.parquet"])
def test_a_file_of_0_bytes(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(MfpoError, match="the file is empty"):
        open_source(tmp_path / name)


def test_a_missing_file_and_a_missing_image_folder(folder: Path) -> None:
    with pytest.raises(MfpoError, match="no such file"):
        open_source(folder / "nothing.jsonl")
    with pytest.raises(MfpoError, match="--images"):
        open_source(jsonl(folder, GOOD), images=folder / "nothing")
    with pytest.raises(MfpoError, match=r"no \.parquet or \.jsonl files and no \.json array"):
        open_source(folder)


def test_unknown_columns_are_named_beside_those_needed(folder: Path) -> None:
    with pytest.raises(MfpoError, match=r"columns answer, ask, but jsonl, the nearest format, also needs id, image, "):
        open_source(jsonl(folder, {"ask": 1, "answer": 2}), images=folder)
    row = dict.fromkeys(["prompt", "images", "chosen", "a" * 60, "bad", "c", "d", "e"], 1)
    with pytest.raises(MfpoError, match="bad, c and 5 more, but trl, the nearest format, also needs rejected") as error:
        open_source(jsonl(folder, row), images=folder)
    assert len(str(error.value)) - len(str(folder)) < 250


def test_a_format_by_name_must_fit(folder: Path) -> None:
    with pytest.raises(
        MfpoError, match="chosen, id, image and 2 more, but format trl also needs images, prompt; docs/"
    ):
        open_source(jsonl(folder, GOOD), images=folder, format="trl")
    with pytest.raises(MfpoError, match=r"no format is named 'csv'; there are rlhf-v, .*, trl, jsonl"):
        open_source(jsonl(folder, GOOD), format="csv")


def test_only_broken_lines(folder: Path) -> None:
    with pytest.raises(MfpoError, match="none of its first rows is a JSON object"):
        open_source(jsonl(folder, "{", "{"), images=folder)


def test_a_text_file_called_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no table, but long enough to look at")
    with pytest.raises(MfpoError, match="not a Parquet file"):
        open_source(tmp_path / "a.parquet")


TEXTS = {"prompt": "What is there?", "chosen": "A dog.", "rejected": "A cat."}
MESSAGES = {
    "prompt": [{"role": "user", "content": "What is there?"}],
    "chosen": [{"role": "assistant", "content": "A dog."}],
    "rejected": [{"role": "assistant", "content": "A cat."}],
}
PARTS = MESSAGES | {
    "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is there?"}]}]
}
PLACEHOLDER = TEXTS | {"prompt": "<image>\nWhat is there?"}


@pytest.mark.parametrize("row", [TEXTS, MESSAGES, PARTS, PLACEHOLDER], ids=["texts", "messages", "parts", "<image>"])
def test_trl_rows_of_each_kind_give_one_record(row: dict, folder: Path) -> None:
    file = jsonl(folder, row | {"images": ["dog.png"]})
    source = open_source(file, images=folder)
    record = source.record(next(iter(source)), 5)
    assert {key: record[key] for key in MESSAGES} == MESSAGES  # type: ignore[literal-required]
    assert record["images"] == [{"bytes": (folder / "dog.png").read_bytes(), "path": "dog.png"}]
    assert record["id"] == "5"


@pytest.mark.parametrize("as_folder", [True, False])
def test_trl_parquet_with_embedded_images(as_folder: bool, folder: Path) -> None:
    features = datasets.Features(
        {"images": datasets.List(datasets.Image()), "note": datasets.Value("string")}
        | {name: [{"role": datasets.Value("string"), "content": datasets.Value("string")}] for name in MESSAGES}
    )
    image = {"bytes": png(), "path": None}
    row = MESSAGES | {"images": [image] * 2, "note": "is not read"}
    file = folder.parent / "table" / "train-00000.parquet"
    datasets.Dataset.from_list([row, row], features=features).to_parquet(file)
    source = open_source(file.parent if as_folder else file)
    rows = list(source)
    assert len(rows) == 2
    assert "note" not in rows[0]
    record = source.record(rows[0], 0)
    assert [Image.open(io.BytesIO(image["bytes"])).size for image in record["images"]] == [(8, 6)] * 2


def test_a_conversation_is_kept_as_prompt(folder: Path) -> None:
    turns = [("system", "Be brief."), ("user", "Hi."), ("assistant", "Hello."), ("user", "What is there?")]
    prompt = [{"role": role, "content": content} for role, content in turns]
    source = open_source(jsonl(folder, MESSAGES | {"prompt": prompt, "images": ["dog.png"]}), images=folder)
    assert source.record(next(iter(source)), 0)["prompt"] == prompt


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"images": []}, "column 'images' is empty"),
        ({"images": None}, "column 'images' is missing"),
        ({"images": 3}, "column 'image' is int, but must be a path"),
        ({"images": ["../secret.png"]}, "leaves the image folder"),
        ({"chosen": None}, "column 'chosen' is missing"),
        ({"chosen": []}, "column 'chosen' has messages (none)"),
        ({"chosen": MESSAGES["chosen"] * 2}, "column 'chosen' has messages (assistant, assistant)"),
        ({"chosen": MESSAGES["prompt"]}, "column 'chosen' has messages (user)"),
        ({"chosen": MESSAGES["rejected"]}, "are equal"),
        ({"prompt": [{"role": "user"}]}, "column 'prompt' has a message without content"),
        ({"prompt": [{"role": "robot", "content": "a"}]}, "column 'prompt' has role 'robot'"),
        ({"prompt": 3}, "column 'prompt' is int"),
        ({"prompt": []}, "column 'prompt' is empty"),
        ({"prompt": ["What?"]}, "column 'prompt' has a message of type str"),
        ({"prompt": MESSAGES["prompt"] + MESSAGES["chosen"]}, "'prompt' must end with a user message"),
        ({"chosen": ""}, "column 'chosen' is empty"),
    ],
)
def test_a_trl_row_with_one_fault(change: dict, reason: str, folder: Path) -> None:
    good = MESSAGES | {"images": ["dog.png"]}
    assert reason in first_error(jsonl(folder, good, good | change), folder, row=1)


def test_an_unreadable_embedded_image(folder: Path) -> None:
    rows = [MESSAGES | {"images": [{"bytes": b"no picture", "path": None}]}]
    pq.write_table(pa.Table.from_pylist(rows), folder.parent / "t.parquet")
    assert "image 'images[0]' cannot be read" in first_error(folder.parent / "t.parquet", folder)


CLAIM = {"answer": "chosen", "start": 2, "end": 5, "object": "dog", "verdict": "true"}


def test_claims_are_kept(folder: Path) -> None:
    source = open_source(jsonl(folder, GOOD | {"claims": [CLAIM]}), images=folder)
    assert source.record(next(iter(source)), 0)["claims"] == [CLAIM]


@pytest.mark.parametrize(
    "change",
    [{"answer": "other"}, {"start": "2"}, {"start": -1}, {"end": 1}, {"end": 2**40}, {"object": 3}, {"verdict": True}],
)
def test_a_broken_claim_sets_its_row_aside(change: dict, folder: Path) -> None:
    broken = first_error(jsonl(folder, GOOD | {"claims": [CLAIM, CLAIM | change]}), folder)
    assert broken.startswith("claims[1] needs an answer (chosen or rejected), a start and an end")


def test_a_foreign_objects_column_is_not_taken_for_masks(folder: Path) -> None:
    source = open_source(jsonl(folder, MESSAGES | {"images": ["dog.png"], "objects": ["dog"]}), images=folder)
    assert source.record(next(iter(source)), 0)["objects"] is None


def test_a_deeply_nested_line_sets_its_row_aside(folder: Path) -> None:
    assert "line 2 of data.jsonl holds a number with thousands of digits, or brackets" in first_error(
        jsonl(folder, GOOD, "[" * 100_000), folder, 1
    )


def test_bytes_and_texts_of_a_wrong_type_set_their_row_aside(folder: Path) -> None:
    with pytest.raises(RecordError, match="bytes as int"):
        read_image({"bytes": 7}, folder, "images[0]")
    with pytest.raises(RecordError, match="whose text is not a string"):
        read_messages({"chosen": [{"role": "user", "content": [{"text": 5}]}]}, "chosen", role="user")


@pytest.mark.parametrize(
    "change",
    [
        {"mask": None},
        {"name": None},
        {"name": "\ud800"},
        {"mask": {"size": [1, 1]}},
        {"mask": {"size": None, "counts": "1"}},
        {"mask": {"size": [1, 2**40], "counts": "1"}},
        {"mask": {"size": [1, 0], "counts": "1"}},
    ],
)
def test_a_broken_object_sets_its_row_aside(change: dict) -> None:
    whole = {"name": "dog", "mask": {"size": [1, 1], "counts": "1"}}
    assert read_objects([whole]) == [whole]
    with pytest.raises(RecordError, match=r"objects\[1\] needs a name and a mask"):
        read_objects([whole, whole | change])


BASE64 = base64.b64encode(encode_image(Image.effect_noise((40, 40), 50).convert("RGB"))["bytes"]).decode()


@pytest.mark.parametrize(
    "image",
    [
        BASE64,
        BASE64.rstrip("="),
        "\n".join(textwrap.wrap(BASE64, 76)),
        "data:image/png;base64," + BASE64,
        {"bytes": BASE64, "path": None},
        {"bytes": BASE64},
        [BASE64],
    ],
    ids=["bare", "unpadded", "wrapped", "uri", "bytes", "bytes alone", "list"],
)
def test_an_image_as_base64_is_decoded(image: object, folder: Path) -> None:
    source = open_source(jsonl(folder, GOOD | {"image": image}), images=folder)
    (read,) = source.record(next(iter(source)), 0)["images"]
    assert read == {"bytes": base64.b64decode(BASE64), "path": "image[0]" if isinstance(image, list) else "image"}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_every_kind_of_image_is_known_as_base64(format: str, folder: Path) -> None:
    written = io.BytesIO()
    Image.effect_noise((40, 40), 50).convert("RGB").save(written, format)
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        text = encode(written.getvalue()).decode()
        assert read_image(text, folder, "image")["path"] in ("image", "image.png")


@pytest.mark.parametrize(
    "image",
    [
        "data:image/png;charset=utf-8;base64," + BASE64,
        "DATA:image/PNG;BASE64," + BASE64,
        " \n" + BASE64,
        "\n data:image/png;base64, " + BASE64 + "\n",
        base64.urlsafe_b64encode(base64.b64decode(BASE64)).decode(),
        {"url": "data:image/png;base64," + BASE64},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + BASE64}},
        {"image_url": "data:image/png;base64," + BASE64},
        {"path": BASE64, "bytes": None},
    ],
)
def test_ways_to_write_base64(image: object, folder: Path) -> None:
    for given in (image, [image]):
        source = open_source(jsonl(folder, GOOD | {"image": given}), images=folder)
        (read,) = source.record(next(iter(source)), 0)["images"]
        assert read["bytes"] == base64.b64decode(BASE64)


@pytest.mark.parametrize("image", [repr(base64.b64decode(BASE64)), repr(BASE64.encode()), {"bytes": f"b'{BASE64}'"}])
def test_bytes_as_python_prints_them_are_called_so(image: object, folder: Path) -> None:
    reason = "image 'image' is bytes as Python prints them, b'...'; give base64 without b and quotes"
    assert first_error(jsonl(folder, GOOD | {"image": image}), folder) == reason


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (BASE64[:2000] + "*" * 200, "image 'image' is not valid base64"),
        ("data:image/png;base64," + "QUJD" * 100_000, "image 'image' cannot be read (it is not an image file)"),
        ("x" * 300_000, "image '" + "x" * 80 + "...' is neither a path nor the base64 of a JPEG, "),
        ("../" * 100_000, "image '" + "../" * 26 + "..."),
        ([{"bytes": "!" * 100_000}], "image 'image[0]' is not valid base64"),
        ([["x" * 100_000]], "column 'image' is list, but must be a path"),
    ],
)
def test_no_reason_repeats_a_long_value(image: object, reason: str, folder: Path) -> None:
    fault = first_error(jsonl(folder, GOOD | {"image": image}), folder)
    assert fault.startswith(reason)
    assert len(fault) < 300


@pytest.mark.parametrize(
    ("prompt", "images", "stored"),
    [
        ("<image>\nWhat?", 1, "What?"),
        ("What?\n<image>", 1, "What?"),
        ("<image>", 1, None),
        ("What?", 2, "What?"),
        ("<image><image>\nWhat?", 2, "What?"),
        ("<image> \n <image>What?", 2, "What?"),
        ("Image A: <image> Image B: <image> Which?", 2, "Image A: <image> Image B: <image> Which?"),
        ("<image>What?<image>", 2, "<image>What?<image>"),
        ("Look at <image> now.", 1, "Look at <image> now."),
        ("Which? <image><image>", 2, "Which? <image><image>"),
        (
            "<image><image>Compare <image> and <image>",
            1,
            "<image> occurs 4 times in the prompt, but the number of images is 1",
        ),
        ("<image> What?", 2, "<image> occurs 1 times in the prompt, but the number of images is 2"),
    ],
)
def test_places_of_images_are_kept_where_they_are_not_before_the_text(
    prompt: str, images: int, stored: str | None, folder: Path
) -> None:
    parts = [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in cut(prompt)]
    for content in (prompt, [{"role": "user", "content": prompt}], [{"role": "user", "content": parts}]):
        row = TEXTS | {"id": "a", "prompt": content, "images": ["dog.png"] * images}
        source = open_source(jsonl(folder, row), images=folder)
        try:
            (message,) = source.record(next(iter(source)), 0)["prompt"]
            found = message["content"]
        except RecordError as error:
            found = str(error)
        assert "".join(found.split()) == "".join((stored or "column 'prompt' is empty").split())


def test_parts_are_read_as_transformers_and_openai_write_them(folder: Path) -> None:
    parts = [{"text": "A"}, {"image": "x.png"}, {"type": "text", "text": "B"}, {"type": "image_url", "image_url": {}}]
    row = TEXTS | {"id": "a", "prompt": [{"role": "user", "content": parts}], "images": ["dog.png"] * 2}
    source = open_source(jsonl(folder, row), images=folder)
    assert source.record(next(iter(source)), 0)["prompt"][0]["content"] == "A <image> B <image>"
    row["prompt"] = [{"role": "user", "content": [{"type": "video", "video": "v.mp4"}, {"text": "What?"}]}]
    source = open_source(jsonl(folder, row), images=folder)
    with pytest.raises(RecordError, match="a part that is neither text nor an image"):
        source.record(next(iter(source)), 0)


def cut(text: str) -> list[str]:
    return [part for part in re.split("(<image>)", text) if part]


def test_a_place_in_a_later_turn_is_kept_and_one_in_an_answer_is_not(folder: Path) -> None:
    turns = [("user", "Hi."), ("assistant", "<image> Hello."), ("user", "<image>\nWhat?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    row = TEXTS | {"id": "a", "prompt": messages, "images": ["dog.png"], "chosen": "A dog. <image>"}
    source = open_source(jsonl(folder, row), images=folder)
    record = source.record(next(iter(source)), 0)
    assert [message["content"] for message in record["prompt"]] == ["Hi.", "Hello.", "<image>\nWhat?"]
    assert record["chosen"][0]["content"] == "A dog."


@pytest.mark.parametrize("choice", [{"split": "test"}, {"subset": "en"}])
def test_a_dataset_in_memory_has_no_files_to_choose(choice: dict[str, str]) -> None:
    with pytest.raises(MfpoError, match="split and subset choose files"):
        open_source(datasets.Dataset.from_dict({"prompt": ["?"], "chosen": ["a"], "rejected": ["b"]}), **choice)


def in_table(file: Path, *rows: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), file)
    return file


@pytest.mark.parametrize("shown", [{"image": "red.png"}, {"image_url": {"url": "red.png"}}, {"type": "image"}])
def test_parts_in_parquet_where_each_has_the_keys_of_all(shown: dict, folder: Path) -> None:
    text = {"type": "text", "text": "What is there?"}
    prompt = [{"role": "user", "content": [shown, text]}]
    row = {"images": ["dog.png"], "prompt": prompt, "chosen": "A dog.", "rejected": "A cat."}
    source = open_source(in_table(folder.parent / "data.parquet", row), images=folder, format="trl")
    (read,) = source
    assert read["prompt"][0]["content"][1].keys() == shown.keys() | text.keys()
    assert source.record(read, 0)["prompt"] == [{"role": "user", "content": "What is there?"}]
    answer = [{"role": "assistant", "content": [{"type": "text", "text": "A dog.", "image": None}]}]
    assert read_messages({"chosen": answer}, "chosen", role="assistant")[0]["content"] == "A dog."


@pytest.mark.parametrize("is_file", [True, False])
def test_an_id_that_is_not_a_number_is_none(is_file: bool, folder: Path) -> None:
    """As in a column of floats, where it stands for null."""
    row = {"images": ["dog.png"], "prompt": "What is there?", "chosen": "A dog.", "rejected": "A cat."}
    rows = [row | {"id": 7.5}, row | {"id": float("nan")}, row | {"id": float("nan")}]
    data: Any = in_table(folder.parent / "data.parquet", *rows) if is_file else datasets.Dataset.from_list(rows)
    source = open_source(data, images=folder, format="trl")
    assert [source.record(row, number)["id"] for number, row in enumerate(source)] == ["7.5", "1", "2"]
    file = in_table(folder.parent / "plain.parquet", GOOD | {"id": float("nan")})
    assert first_error(file, folder) == "column 'id' is missing"
