"""A small file in the schema that each dataset is published in gives just the records it should."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mfpo.errors import MfpoError, RecordError
from mfpo.records import Message, SourceRecord
from mfpo.sources import FORMATS, Source, open_source


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = png("red"), png("blue")
PROMPT, CHOSEN, REJECTED = "What is there?", "A dog.", "A cat."
TURNS: list[Message] = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": PROMPT},
]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SHAREGPT = pa.struct([("from", pa.string()), ("value", pa.string())])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "red.png").write_bytes(RED)
    (tmp_path / "images" / "blue.png").write_bytes(BLUE)
    return tmp_path


def parquet(folder: Path, schema: dict[str, pa.DataType], *rows: dict) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows), pa.schema(list(schema.items()))), folder / "data.parquet")
    return folder / "data.parquet"


def array(folder: Path, *rows: object) -> Path:
    (folder / "data.json").write_text(json.dumps(rows, indent=2))
    return folder / "data.json"


def jsonl(folder: Path, *rows: object) -> Path:
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "data.jsonl"


def record(file: Path, *, id: str = "0", prompt: list[Message] = TURNS[-1:], path: str = "red.png") -> SourceRecord:
    """What the one pair of these tests must become."""
    return SourceRecord(
        id=id,
        images=[{"bytes": RED, "path": path}],
        prompt=prompt,
        chosen=[{"role": "assistant", "content": CHOSEN}],
        rejected=[{"role": "assistant", "content": REJECTED}],
        rejected_images=None,
        counter=None,
        claims=None,
        objects=None,
        source={"dataset": file.name, "row": 0},
    )


def only_record(source: Source) -> SourceRecord:
    (row,) = source
    made = source.record(row, 0)
    assert source.id(row, 0) == made["id"]
    return made


def error(source: Source) -> str:
    (row,) = source
    with pytest.raises(RecordError) as caught:
        source.record(row, 0)
    return str(caught.value)


RLHF_V = {
    "ds_name": pa.string(),
    "image": STRUCT,
    "text": pa.string(),
    "origin_dataset": pa.string(),
    "origin_split": pa.string(),
    "idx": pa.int64(),
    "image_path": pa.string(),
}
ORIGIN = {"ds_name": "RLHF-V", "origin_dataset": "COCO", "origin_split": "{}", "image_path": "llava/red.png"}
TEXT = {"question": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}


@pytest.mark.parametrize("path", ["a/red.png", None])
def test_rlhf_v(path: str | None, folder: Path) -> None:
    row = ORIGIN | {"image": {"bytes": RED, "path": path}, "text": json.dumps(TEXT), "idx": 7}
    source = open_source(parquet(folder, RLHF_V, row, row))
    rows = list(source)
    assert source.record(rows[0], 0) == record(folder / "data.parquet")
    # Two subsets were merged, and idx counts in each.
    assert [source.id(row, number) for number, row in enumerate(rows)] == ["0", "1"]


def test_rlhf_v_as_jsonl_of_2023(folder: Path) -> None:
    row = {"dataset_name": "RLHF-V", "image": "images/red.png", "text": TEXT, "origin_split_inner_idx": 3}
    file = jsonl(folder, row)
    assert only_record(open_source(file)) == record(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "column 'text' is missing"),
        ("{", "column 'text' is not valid JSON"),
        ("[]", "column 'text' must be a JSON object"),
        (json.dumps(TEXT | {"chosen": None}), "column 'chosen' is missing"),
        (json.dumps(TEXT | {"chosen": "\ud800"}), "column 'text' is not valid JSON"),
    ],
)
def test_an_rlhf_v_text_with_a_fault(text: str | None, reason: str, folder: Path) -> None:
    row = ORIGIN | {"image": {"bytes": RED, "path": None}, "text": text, "idx": 7}
    assert reason in error(open_source(parquet(folder, RLHF_V, row)))


def test_rlaif_v(folder: Path) -> None:
    schema = RLHF_V | {name: pa.string() for name in ("question", "chosen", "rejected", "idx")}
    del schema["text"]
    row = ORIGIN | TEXT | {"image": {"bytes": RED, "path": "red.png"}, "idx": "a"}
    file = parquet(folder, schema, row)
    assert only_record(open_source(file)) == record(file)


ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
ANNOTATION = pa.struct([("Rating", pa.string()), ("Rationale", pa.string())])
ANNOTATIONS = pa.struct([(name, ANNOTATION) for name in ASPECTS])
LIST_OF_STRUCTS = pa.list_(pa.struct([("annotations", ANNOTATIONS), ("model", pa.string()), ("response", pa.string())]))
STRUCT_OF_LISTS = pa.struct(
    [("annotations", pa.list_(ANNOTATIONS)), ("model", pa.list_(pa.string())), ("response", pa.list_(pa.string()))]
)


def completion(response: str, *ratings: object) -> dict:
    given = {name: {"Rating": rating, "Rationale": "..."} for name, rating in zip(ASPECTS, ratings, strict=True)}
    return {"annotations": given, "model": "llava", "response": response}


# The means are 4, 14/3, 3 and 10/3.
COMPLETIONS = [
    completion("So-so.", "4", "5", "3"),
    completion(CHOSEN, "5", "5", "4"),
    completion(REJECTED, "1", "5", "3"),
    completion("Weak.", "1", "5", "4"),
]
VLFEEDBACK = {"id": "svit-1", "prompt": PROMPT, "models": ["llava"] * 4}


def columnar(completions: list[dict]) -> dict:
    return {key: [completion[key] for completion in completions] for key in ("annotations", "model", "response")}


@pytest.mark.parametrize("is_columnar", [True, False])
def test_vlfeedback_takes_the_best_and_the_worst_mean_rating(is_columnar: bool, folder: Path) -> None:
    schema = {"id": pa.string(), "prompt": pa.string(), "models": pa.list_(pa.string()), "img_path": pa.string()}
    schema |= {"completions": STRUCT_OF_LISTS if is_columnar else LIST_OF_STRUCTS, "image": STRUCT}
    completions = columnar(COMPLETIONS) if is_columnar else COMPLETIONS
    row = VLFEEDBACK | {"completions": completions, "image": {"bytes": RED, "path": "red.png"}}
    file = parquet(folder, schema, row)
    assert only_record(open_source(file)) == record(file, id="svit-1")


def test_vlfeedback_with_its_images_apart(folder: Path) -> None:
    file = jsonl(folder, VLFEEDBACK | {"completions": COMPLETIONS, "img_path": "red.png"})
    assert only_record(open_source(file, images=folder / "images")) == record(file, id="svit-1")


@pytest.mark.parametrize(
    ("completions", "reason"),
    [
        (
            [completion(CHOSEN, "4", "5", "3"), completion(REJECTED, "3", "4", "5")],
            "all completions have the same mean",
        ),
        (COMPLETIONS[:1], "all completions have the same mean"),
        ([], "column 'completions' is missing or empty"),
        ({"annotations": [{}], "response": []}, "as many annotations as responses"),
        ("text", "column 'completions' must be a list of objects"),
        ([COMPLETIONS[0], {"response": "a"}], "completions[1] has no annotations"),
        (
            [COMPLETIONS[0], completion("a", "5", "N/A", "4")],
            "completions[1], 'Ethical Considerations': rating 'N/A' is not a number",
        ),
        ([completion("a", "5", "nan", "4")], "rating 'nan' is not a number"),
        ([completion("a", "5", None, "4")], "rating None is not a number"),
        ([completion(CHOSEN, "5", "5", "5"), completion(CHOSEN, "1", "1", "1")], "'chosen' and 'rejected' are equal"),
        ([completion(CHOSEN, "5", "5", "5"), completion("", "1", "1", "1")], "column 'response' is empty"),
    ],
)
def test_vlfeedback_that_prefers_nothing(completions: object, reason: str, folder: Path) -> None:
    file = jsonl(folder, VLFEEDBACK | {"completions": completions, "img_path": "images/red.png"})
    assert reason in error(open_source(file))


LLAVA_RLHF = {
    "id": "000000033471",
    "image": "red.png",
    "conversations": [
        {"from": "human", "value": "<image>\nHi."},
        {"from": "gpt", "value": "Hello."},
        {"from": "human", "value": PROMPT},
        {"from": "gpt", "value": "LLaVA-Instruct's own answer"},
    ],
    "output_1": {"from": "llava", "value": REJECTED},
    "output_2": {"from": "llava", "value": CHOSEN},
    "preference": 2,
}


def test_llava_rlhf_keeps_the_conversation_and_drops_its_last_answer(folder: Path) -> None:
    file = array(folder, LLAVA_RLHF)
    assert only_record(open_source(file, images=folder / "images")) == record(file, prompt=TURNS)
    swapped = {"preference": 1, "output_1": LLAVA_RLHF["output_2"], "output_2": LLAVA_RLHF["output_1"]}
    array(folder, LLAVA_RLHF | swapped | {"conversations": LLAVA_RLHF["conversations"][:-1]})
    assert only_record(open_source(file, images=folder / "images")) == record(file, prompt=TURNS)


def test_llava_rlhf_comes_without_images(folder: Path) -> None:
    with pytest.raises(MfpoError, match=r"llava-rlhf has no images of its own; give their folder with --images"):
        open_source(array(folder, LLAVA_RLHF))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"preference": 0}, "preference is 0, but must be 1 or 2"),
        ({"preference": True}, "preference is True"),
        ({"preference": None}, "preference is None"),
        ({"output_2": None}, "column 'output_2' is missing"),
        ({"output_2": {"from": "llava", "value": " "}}, "column 'output_2' is empty"),
        ({"conversations": LLAVA_RLHF["conversations"][-1:]}, "column 'conversations' is empty"),
        (
            {"conversations": [*LLAVA_RLHF["conversations"], {"from": "gpt", "value": "A"}]},
            "must end with a user message",
        ),
        ({"image": "green.png"}, "image 'green.png' is not in"),
    ],
)
def test_an_llava_rlhf_row_with_one_fault(change: dict, reason: str, folder: Path) -> None:
    assert reason in error(open_source(array(folder, LLAVA_RLHF | change), images=folder / "images"))


ANSWERED: list[Message] = [*TURNS, {"role": "assistant", "content": CHOSEN}]
OTHER: list[Message] = [*TURNS, {"role": "assistant", "content": REJECTED}]
MS_SWIFT = {"messages": ANSWERED, "images": ["images/red.png"]}


@pytest.mark.parametrize(
    "rejected",
    [
        {"rejected_response": REJECTED},
        {"rejected_response": None, "rejected_messages": OTHER},
        {"rejected_messages": OTHER, "objects": {"ref": [], "bbox": []}},
    ],
)
def test_ms_swift(rejected: dict, folder: Path) -> None:
    file = jsonl(folder, MS_SWIFT | rejected)
    assert only_record(open_source(file)) == record(file, prompt=TURNS)


def test_rejected_images_come_with_the_right_answer_to_them(folder: Path) -> None:
    row = MS_SWIFT | {"rejected_messages": OTHER, "rejected_images": ["images/blue.png"], "counter": "A blue wall."}
    brought = only_record(open_source(jsonl(folder, row)))
    assert brought["rejected_images"] == [{"bytes": (folder / "images/blue.png").read_bytes(), "path": "blue.png"}]
    assert brought["counter"] == [{"role": "assistant", "content": "A blue wall."}]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rejected_response": None}, "column 'rejected_response' or 'rejected_messages' is missing"),
        ({"messages": TURNS}, "column 'messages' must end with an answer of the assistant"),
        ({"messages": []}, "column 'messages' must end with an answer of the assistant"),
        ({"messages": ANSWERED[-1:]}, "column 'messages' is empty"),
        ({"rejected_messages": OTHER[2:]}, "'messages' and 'rejected_messages' differ before the answer"),
    ],
)
def test_an_ms_swift_row_with_one_fault(change: dict, reason: str, folder: Path) -> None:
    assert reason in error(open_source(jsonl(folder, MS_SWIFT | {"rejected_response": REJECTED} | change)))


def test_llama_factory_in_parquet(folder: Path) -> None:
    row = {
        "conversations": [{"from": "human", "value": "<image>" + PROMPT}],
        "chosen": {"from": "gpt", "value": CHOSEN},
        "rejected": {"from": "gpt", "value": REJECTED},
        "images": [{"bytes": RED, "path": "red.png"}],
    }
    schema = {"conversations": pa.list_(SHAREGPT), "chosen": SHAREGPT, "rejected": SHAREGPT, "images": pa.list_(STRUCT)}
    file = parquet(folder, schema, row)
    assert only_record(open_source(file)) == record(file)


def test_llama_factory_with_openai_messages_and_a_system_prompt(folder: Path) -> None:
    answers = {"chosen": ANSWERED[-1], "rejected": OTHER[-1]}
    file = array(folder, answers | {"messages": TURNS, "system": "Be brief.", "images": ["images/red.png"]})
    prompt: list[Message] = [{"role": "system", "content": "Be brief."}, *TURNS]
    assert only_record(open_source(file)) == record(file, prompt=prompt)


def test_a_tool_call_is_no_message_that_we_know(folder: Path) -> None:
    answers = {"chosen": ANSWERED[-1], "rejected": OTHER[-1], "images": ["images/red.png"]}
    file = array(folder, answers | {"conversations": [{"from": "function_call", "value": "f"}]})
    assert "column 'conversations' has role 'function_call', but the known roles are system, user" in error(
        open_source(file)
    )


# A good row of each format, with two images wherever its published rows have but one.
TWO = ["images/red.png", "images/blue.png"]
ROWS = {
    "rlhf-v": ORIGIN | {"image": TWO, "text": json.dumps(TEXT)},
    "rlaif-v": ORIGIN | {"image": TWO} | TEXT,
    "vlfeedback": VLFEEDBACK | {"completions": columnar(COMPLETIONS), "img_path": TWO},
    "llava-rlhf": json.loads(json.dumps(LLAVA_RLHF).replace("<image>", "<image><image>")) | {"image": TWO},
    "ms-swift": MS_SWIFT | {"rejected_response": REJECTED, "images": TWO},
    "llama-factory": {"conversations": TURNS, "chosen": ANSWERED[-1], "rejected": OTHER[-1], "images": TWO},
    "trl": {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED, "images": TWO},
    "jsonl": {"id": "a", "image": TWO} | TEXT,
}


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_is_found_by_its_columns_and_takes_several_images(format: str, folder: Path) -> None:
    source = open_source(jsonl(folder, ROWS[format]), images=folder)
    assert source.format == format  # type: ignore[attr-defined]
    assert [image["bytes"] for image in only_record(source)["images"]] == [RED, BLUE]


@pytest.mark.parametrize("format", FORMATS)
def test_a_dataset_with_the_columns_of_jsonl_too_is_not_taken_for_jsonl_unless_forced(
    format: str, folder: Path
) -> None:
    both = {"id": "a", "image": "images/red.png"} | TEXT | ROWS[format]
    source = open_source(jsonl(folder, both), images=folder)
    assert source.format == format  # type: ignore[attr-defined]
    forced = open_source(folder / "data.jsonl", images=folder, format="jsonl")
    assert forced.format == "jsonl"  # type: ignore[attr-defined]


def test_the_older_plain_columns_of_rlhf_v_are_those_of_rlaif_v(folder: Path) -> None:
    file = jsonl(folder, ORIGIN | TEXT | {"image": "images/red.png"})
    assert only_record(open_source(file)) == record(file)


def test_a_row_brings_its_masks_in_any_format(folder: Path) -> None:
    objects = [{"name": "dog", "mask": {"size": [6, 8], "counts": "`1"}}]
    source = open_source(jsonl(folder, ROWS["jsonl"] | {"objects": objects}))
    assert only_record(source)["objects"] == objects


ANSWERS = {
    "non-Latin": "一只狗在草地上。 Собака на траве. كلب على العشب",
    "emoji": "A 🐶 on a 🛹",
    "5,000 words": "dog " * 4999 + "dog",
    "a zero byte": "A dog\0.",
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_answers_of_any_length_and_script_are_kept(answer: str, folder: Path) -> None:
    source = open_source(jsonl(folder, ROWS["jsonl"] | {"chosen": answer}))
    assert only_record(source)["chosen"] == [{"role": "assistant", "content": answer}]
