"""Whatever a row holds, it is built into a record that can be written, or is refused with a reason."""

import base64
import copy
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mfpo.build.regions.dataset import DatasetRegions
from mfpo.build.settings import BuildSettings
from mfpo.build.steps import build_record
from mfpo.errors import RecordError
from mfpo.images import encode_image
from mfpo.records import FEATURES, SourceRecord
from mfpo.shards import write_shard
from mfpo.sources import FORMATS, Source, open_source

RED = encode_image(Image.new("RGB", (4, 4), "red"))["bytes"]
TEXT = {"question": "What is there?", "chosen": "A dog.", "rejected": "A cat."}
USER, CHOSEN, REJECTED = (
    {"role": role, "content": text}
    for role, text in zip(("user", "assistant", "assistant"), TEXT.values(), strict=True)
)
EMBEDDED = {"bytes": RED, "path": "red.png"}
ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
COMPLETIONS = [
    {"annotations": {name: {"Rating": rating, "Rationale": "."} for name in ASPECTS}, "model": "m", "response": text}
    for rating, text in (("5", "A dog."), ("2", "A cat."))
]
MASKS = [{"name": "dog", "mask": {"size": [4, 4], "counts": "0`0"}}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "rlhf-v": [
        {"ds_name": "R", "image": EMBEDDED, "text": json.dumps(TEXT), "idx": 1, "image_path": "a/red.png"},
        {"ds_name": "R", "image": EMBEDDED, "text": TEXT, "idx": 1},
    ],
    "rlaif-v": [{"ds_name": "R", "image": [EMBEDDED] * 2, "idx": "a", "image_path": "a/red.png"} | TEXT],
    "vlfeedback": [
        {"id": "a", "prompt": "What?", "completions": COMPLETIONS, "img_path": "red.png"},
        {
            "id": "a",
            "prompt": "What?",
            "completions": {key: [one[key] for one in COMPLETIONS] for key in COMPLETIONS[0]},
            "image": EMBEDDED,
        },
    ],
    "llava-rlhf": [
        {
            "image": "red.png",
            "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "A."}],
            "output_1": {"from": "llava", "value": "A dog."},
            "output_2": {"from": "llava", "value": "A cat."},
            "preference": 1,
        }
    ],
    "ms-swift": [
        {"messages": [USER, CHOSEN], "rejected_response": "A cat.", "images": ["red.png", "red.png"]},
        {"messages": [USER, CHOSEN], "rejected_messages": [USER, REJECTED], "images": [EMBEDDED]},
    ],
    "llama-factory": [
        {"conversations": [USER], "system": "S", "chosen": CHOSEN, "rejected": REJECTED, "images": ["red.png"]}
    ],
    "trl": [
        {"id": 1, "images": [EMBEDDED], "prompt": [USER], "chosen": [CHOSEN], "rejected": "A cat.", "objects": MASKS}
    ],
    "jsonl": [{"id": "a", "image": "red.png"} | TEXT],
}
# Of the columns that a source fills; `mfpo build` adds the others.
SCHEMA = pa.schema([FEATURES.arrow_schema.field(name) for name in ("id", "images", "prompt", "chosen", "rejected")])
SCHEMA = SCHEMA.append(FEATURES.arrow_schema.field("objects")).append(FEATURES.arrow_schema.field("source"))

TRICKY = [None, True, 0, -1, 3, 10**30, math.nan, math.inf, b"", b"\xff\xd8\xff", [], {}, [None], [[]], {"a": None}]
TRICKY += ["", " ", "<image>", "\ud800", "\udc80.png", "a\0b", "dog " * 5000, "../red.png", "/", "x" * 5000, "{", "[1]"]
TRICKY += [{"bytes": RED[:30], "path": None}, {"bytes": "aGk=", "path": 7}, {"role": "user", "content": None}]
TRICKY += [
    "_hR43^",
    "0`00",
    {"size": [4, 4], "counts": "ooooooooo0"},
    {"size": [2**40, -1], "counts": "é"},
    '{"chosen": "\\ud800"}',
    {"Rating": "5/5"},
]
BASE64 = base64.b64encode(encode_image(Image.effect_noise((40, 40), 50).convert("RGB"))["bytes"]).decode()
TRICKY += [BASE64, "data:image/png;base64," + BASE64, BASE64[:300], BASE64 + "*", {"bytes": BASE64}, "x" * 300_000]
TRICKY += ["What is in <image> here?", "<image> or <image>?", [{"type": "image"}, {"type": "text", "text": "What?"}]]
VALUES = st.sampled_from(TRICKY) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each (container, key) inside of a row."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [place for key in keys for place in [(value, key), *places(value[key])]]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A good row of some format, with one to three faults put in at any depth."""
    format = draw(st.sampled_from(FORMATS))
    row = copy.deepcopy(draw(st.sampled_from(ROWS[format])))
    for _ in range(draw(st.integers(1, 3))):
        found = places(row)
        if not found:
            break
        container, key = draw(st.sampled_from(found))
        match draw(st.sampled_from(["drop", "replace", "nest", "cut"])):
            case "drop":
                del container[key]
            case "nest":
                container[key] = draw(st.sampled_from([[container[key]], {"value": container[key]}]))
            case "cut" if isinstance(container[key], str | bytes):
                container[key] = container[key][: draw(st.integers(0, len(container[key])))]
            case _:
                container[key] = copy.deepcopy(draw(VALUES))
    return format, row


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Source]:
    opened = {}
    for format in FORMATS:
        folder = tmp_path_factory.mktemp(format)
        (folder / "red.png").write_bytes(RED)
        rows = [dict.fromkeys(row, "") for row in ROWS[format]]
        (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        opened[format] = open_source(folder / "data.jsonl", images=folder)
    return opened


def check(source: Source, row: dict[str, Any], out: Path) -> bool:
    """Whether the row was built, which then must be into a record that can be read back."""
    id = source.id(row, 5)
    try:
        record = source.record(row, 5)
        check_record(record, id)
        segmenter = None if record["objects"] is None else DatasetRegions()
        built, _ = build_record(record, BuildSettings(corruption="region" if segmenter else "global"), segmenter)
    except RecordError as error:
        reason = str(error)
    else:
        write_shard([built], out)
        (read,) = pq.read_table(out).to_pylist()
        assert (read["id"], len(read["rejected_images"])) == (id, len(record["images"]))
        return True
    assert reason.strip()
    assert len(reason) < 500
    assert "\n" not in reason
    reason.encode()
    return False


def check_record(record: SourceRecord, id: str) -> None:
    assert record["id"] == id
    assert record["images"]
    assert record["prompt"][-1]["role"] == "user"
    assert record["chosen"][0]["content"] != record["rejected"][0]["content"]
    table = pa.Table.from_pylist([dict(record)], SCHEMA)  # refuses wrong types, and texts that are none
    assert table.num_rows == 1


@pytest.mark.parametrize("format", FORMATS)
def test_the_rows_are_good_before_they_are_mutated(format: str, sources: dict[str, Source], tmp_path: Path) -> None:
    assert all(check(sources[format], row, tmp_path / "built.parquet") for row in ROWS[format])


def test_1000_mutated_rows(sources: dict[str, Source], tmp_path: Path) -> None:
    made = {True: 0, False: 0}

    @settings(max_examples=1000, derandomize=True, deadline=None, database=None)
    @given(mutated())
    def each(drawn: tuple[str, dict[str, Any]]) -> None:
        format, row = drawn
        made[check(sources[format], row, tmp_path / "built.parquet")] += 1

    each()
    # Both ends are reached, or the mutations would be too weak or too strong to say anything.
    assert made[True] > 100
    assert made[False] > 100
