"""The preference record: its columns, its validation, and its Parquet shards.

A record is a row of a Hugging Face dataset with the column names that TRL and ms-swift use. Images travel encoded
(`{"bytes", "path"}`), so that a file on disk goes into the dataset untouched.
"""

import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from mfpo.errors import MfpoError, RecordError


class Message(TypedDict):
    role: str
    content: str


class EncodedImage(TypedDict):
    bytes: bytes
    path: str | None


class RLE(TypedDict):
    """A COCO run-length mask, as `pycocotools.mask.decode` reads it; `size` is (height, width)."""

    size: list[int]
    counts: str


class NamedMask(TypedDict):
    name: str
    mask: RLE


class Keyword(TypedDict):
    text: str
    score: float


class Region(TypedDict):
    """Where a keyword was found; `image` counts the record's images from 0."""

    keyword: str
    score: float
    mask: RLE
    image: int


class Corruption(TypedDict):
    """How the rejected images were made; `fallback` says that no keyword found a region."""

    kind: str
    schedule: str
    step: int
    seed: int
    fallback: bool


class Origin(TypedDict):
    dataset: str
    row: int


class SourceRecord(TypedDict):
    """What a source gives. `objects` are the masks that the dataset brings: None if it has none for any image."""

    id: str
    images: list[EncodedImage]
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    objects: list[NamedMask] | None
    source: Origin


class Record(SourceRecord):
    """What `mfpo build` writes: the rejected images m' and how they came about."""

    rejected_images: list[EncodedImage]
    keywords: list[Keyword]
    regions: list[Region]
    corruption: Corruption


_MESSAGES = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
_RLE = {"size": datasets.List(datasets.Value("int32")), "counts": datasets.Value("string")}

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "images": datasets.List(datasets.Image()),
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "rejected_images": datasets.List(datasets.Image()),
        "keywords": datasets.List({"text": datasets.Value("string"), "score": datasets.Value("float64")}),
        "regions": datasets.List(
            {
                "keyword": datasets.Value("string"),
                "score": datasets.Value("float64"),
                "mask": _RLE,
                "image": datasets.Value("int32"),
            }
        ),
        "corruption": {
            "kind": datasets.Value("string"),
            "schedule": datasets.Value("string"),
            "step": datasets.Value("int32"),
            "seed": datasets.Value("int64"),
            "fallback": datasets.Value("bool"),
        },
        "objects": datasets.List({"name": datasets.Value("string"), "mask": _RLE}),
        "source": {"dataset": datasets.Value("string"), "row": datasets.Value("int64")},
    }
)

# Raster formats that PIL decodes itself: others, as EPS, run a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# Arrow cannot read back a group of rows beyond 2 GB.
_ROW_GROUP_BYTES = 256 << 20

# A record needs these to train with any method.
TEXT_COLUMNS = ("id", "images", "prompt", "chosen", "rejected")


def new_record(
    *,
    id: object,
    images: Sequence[EncodedImage],
    question: object,
    chosen: object,
    rejected: object,
    source: Origin,
    objects: Sequence[NamedMask] | None = None,
) -> SourceRecord:
    """Make a record from one question and two answers.

    Raises RecordError that names the column when a text is missing, no string or blank, when chosen equals rejected,
    or when there is no image.
    """
    texts = {"question": question, "chosen": chosen, "rejected": rejected}
    for column, text in texts.items():
        if text is None:
            raise RecordError(f"column {column!r} is missing")
        if not isinstance(text, str):
            raise RecordError(f"column {column!r} is {type(text).__name__}, but must be a text")
        if not text.replace("<image>", "").strip():
            raise RecordError(f"column {column!r} is empty")
    # LLaVA's data writes the image into the text; a chat template puts it in again.
    question, *answers = (str(text).replace("<image>", "").strip() for text in texts.values())
    if answers[0] == answers[1]:
        raise RecordError("columns 'chosen' and 'rejected' are equal, so they express no preference")
    if not images:
        raise RecordError("column 'images' is empty")
    return SourceRecord(
        id=str(id),
        images=list(images),
        prompt=[{"role": "user", "content": question}],
        chosen=[{"role": "assistant", "content": answers[0]}],
        rejected=[{"role": "assistant", "content": answers[1]}],
        objects=None if objects is None else list(objects),
        source=source,
    )


def answer_text(messages: Sequence[Message]) -> str:
    """The text of an answer, or of a prompt with one turn."""
    return " ".join(message["content"] for message in messages)


def load_image(folder: Path, name: object) -> EncodedImage:
    """Read the image `name` below `folder`.

    A file in RGB without rotation is kept byte for byte; anything else is turned upright, made RGB, stored as PNG.
    Raises RecordError when the path leaves the folder, is missing, or holds no readable image.
    """
    if name is None or name == "":
        raise RecordError("column 'image' is missing")
    if not isinstance(name, str):
        raise RecordError(f"column 'image' is {type(name).__name__}, but must be a path")
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise RecordError(f"image {name!r} leaves the image folder {folder}")
        if not path.is_file():
            raise RecordError(f"image {name!r} is not in {folder}")
        data = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a zero byte, a loop of links
        raise RecordError(f"image {name[:80]!r} cannot be read ({error})") from None
    return check_image(data, name)


def check_image(data: bytes, name: str) -> EncodedImage:
    """`data` as an image of a record: decoded once to be sure, re-encoded only where it must be."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # PIL's own words hold an address in memory, another in every run.
        reason = "it is no image file" if isinstance(error, UnidentifiedImageError) else error
        raise RecordError(f"image {name!r} cannot be read ({reason})") from None
    is_rotated = image.getexif().get(0x0112, 1) != 1
    if image.mode == "RGB" and image.format in ("JPEG", "PNG") and not is_rotated:
        return EncodedImage(bytes=data, path=os.path.basename(name))
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):  # 16 bits, which PIL would clip to white
        upright = Image.fromarray((np.asarray(upright, dtype=np.uint32) >> 8).astype(np.uint8))
    # The name stays recognisable: COCO annotations are found by it.
    return EncodedImage(bytes=encode_image(upright.convert("RGB"))["bytes"], path=f"{Path(name).stem}.png")


def encode_image(image: Image.Image) -> EncodedImage:
    """`image` as PNG: lossless, so that training sees just the pixels that were made."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return EncodedImage(bytes=buffer.getvalue(), path=None)


def decode_image(image: EncodedImage) -> Image.Image:
    """The RGB pixels of an encoded image."""
    return Image.open(io.BytesIO(image["bytes"])).convert("RGB")


def write_shard(records: Sequence[Record], path: Path) -> None:
    """Write records as one Parquet file with the features in its schema; the file appears whole or not at all."""
    columns = {name: [record[name] for record in records] for name in FEATURES}  # type: ignore[literal-required]
    # Built by pyarrow, not by datasets.Dataset: that one would decode and encode every image on the way.
    table = pa.table(columns, schema=FEATURES.arrow_schema)
    partial = path.with_suffix(".partial")
    rows = min(100, max(1, _ROW_GROUP_BYTES * len(records) // max(table.nbytes, 1)))
    pq.write_table(table, partial, row_group_size=rows)
    partial.replace(path)


def read_dataset(folder: Path, needs: Sequence[str] = TEXT_COLUMNS) -> datasets.Dataset:
    """Open a folder that `mfpo build` or `mfpo rank` wrote.

    Raises MfpoError when the folder holds no readable shards or no rows, lacks one of the columns in `needs` or a value
    in one, or when a row has not one rejected image an image.
    """
    shards = sorted(map(str, folder.glob("*.parquet")))
    if not shards:
        raise MfpoError(f"{folder}: no Parquet shards there; make them with `mfpo build ... --out {folder}`")
    try:
        if not any(pq.read_metadata(shard).num_rows for shard in shards):
            raise MfpoError(f"{folder}: holds no records; build it again")
        dataset = datasets.Dataset.from_parquet(shards)
    except (pa.ArrowInvalid, datasets.exceptions.DatasetGenerationError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise MfpoError(f"{folder}: its Parquet shards cannot be read ({reason}); build it again") from None
    missing = [column for column in needs if column not in dataset.column_names]
    if missing:
        command = "rank" if set(missing) <= {"entropy", "level"} else "build"
        raise MfpoError(f"{folder}: column {', '.join(missing)} is missing; run `mfpo {command}` first")
    for name in needs:
        _refuse(pc.is_null(dataset.data.column(name)), folder, f"column {name} is empty")
    if {"images", "rejected_images"} <= set(dataset.column_names):
        given, rejected = (pc.list_value_length(dataset.data.column(name)) for name in ("images", "rejected_images"))
        _refuse(pc.not_equal(given, rejected), folder, "column rejected_images is not as long as images")
    return dataset


def _refuse(is_wrong: pa.ChunkedArray, folder: Path, fault: str) -> None:
    """Raise MfpoError that names the first row that is wrong."""
    row = pc.index(is_wrong, True).as_py()
    if row >= 0:
        raise MfpoError(f"{folder}, row {row}: {fault}; build it again")


def column(dataset: datasets.Dataset, name: str) -> list[Any]:
    """A whole column as a list, without decoding the images of the others."""
    return list(dataset.select_columns([name])[name])
