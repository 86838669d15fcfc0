"""The preference record: its columns, its validation, and its Parquet shards.

A record is a row of a Hugging Face dataset with the column names that TRL and ms-swift use. Images travel encoded
(`{"bytes", "path"}`), so that a file on disk goes into the dataset untouched.
"""

import base64
import errno
import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypedDict

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mfpo.errors import MfpoError, RecordError, brief
from mfpo.folders import check_shards


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
# What every trainer can open goes into the dataset untouched.
_KEPT_FORMATS = ("JPEG", "PNG", "WEBP")
# How the chunks of a PNG begin that may say how it is turned; they may come after the pixels.
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
_SURROGATE = re.compile("[\ud800-\udfff]")
# Pixels a side of a WebP.
_WEBP_LIMIT = 16383
# Below it 16 bits are all but black, and most likely 10 or 12 bits in 16.
_DARK = 4096
# PIL's limit for decompression bombs.
_MAX_PIXELS = 89_478_485
# Rows are written and read in groups, which are in memory as a whole; Arrow cannot read back one beyond 2 GB.
_ROW_GROUP, _ROW_GROUP_BYTES = 32, 256 << 20

# Where a text has an image; LLaVA's data began it.
IMAGE_PLACE = "<image>"

# How an image begins that a JSON file holds as base64: a data URI, or what JPEG, PNG, GIF, WebP, BMP and TIFF become;
# and how Python writes bytes.
_BASE64 = re.compile(
    r"\s*(?:(?i:data:[^,]{0,100};base64,)"
    r"|(?=(?:[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK)[\w+/=\s-]{60})"
    r"|(?=(?P<python>b['\"].{60})))",
    re.ASCII,
)

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

    Raises RecordError that names the column when a text is missing, no string, blank or not to be written to a file,
    when chosen equals rejected, when there is no image, or the question has places for more or fewer (`place_images`).
    """
    if not is_text(str(id)):
        raise RecordError("column 'id' holds an unpaired surrogate, which cannot be stored as UTF-8")
    texts = {"question": question, "chosen": chosen, "rejected": rejected}
    for column, text in texts.items():
        if text is None:
            raise RecordError(f"column {column!r} is missing")
        if not isinstance(text, str):
            raise RecordError(f"column {column!r} is {type(text).__name__}, but must be a text")
        if not is_text(text):
            raise RecordError(f"column {column!r} holds an unpaired surrogate, which cannot be stored as UTF-8")
        if not without_places(text):
            raise RecordError(f"column {column!r} is empty")
    answers = [without_places(str(text)) for text in (chosen, rejected)]
    if answers[0] == answers[1]:
        raise RecordError("columns 'chosen' and 'rejected' are equal, so they express no preference")
    if not images:
        raise RecordError("column 'images' is empty")
    return SourceRecord(
        id=str(id),
        images=list(images),
        prompt=place_images([Message(role="user", content=str(question))], len(images)),
        chosen=[{"role": "assistant", "content": answers[0]}],
        rejected=[{"role": "assistant", "content": answers[1]}],
        objects=None if objects is None else list(objects),
        source=source,
    )


def without_places(text: str) -> str:
    return text.replace(IMAGE_PLACE, "").strip()


def place_images(prompt: Sequence[Message], images: int) -> list[Message]:
    """`prompt` with `<image>` where its images stand, or without where they stand before the text.

    That is where a chat template puts images of its own accord. A single image at the end of the first turn goes there
    too, as LLaVA's own loader has it. Raises RecordError when there are places, but not one for each image.
    """
    places = sum(message["content"].count(IMAGE_PLACE) for message in prompt)
    if places not in (0, images):
        raise RecordError(f"<image> stands {places} times in the prompt, but the number of images is {images}")
    first = next((message["content"].strip() for message in prompt if message["role"] == "user"), "")
    text = re.sub(rf"^(?:{IMAGE_PLACE}|\s)+", "", first)
    is_before = first.count(IMAGE_PLACE) == places and IMAGE_PLACE not in text
    is_after = places == 1 and first.endswith(IMAGE_PLACE)
    tidy = without_places if is_before or is_after else str.strip
    return [Message(role=message["role"], content=tidy(message["content"])) for message in prompt]


def content_parts(text: str) -> list[dict[str, str]]:
    """What a chat template takes for a text: it is cut at each `<image>`, where an image stands.

    >>> content_parts("In <image> I see")
    [{'type': 'text', 'text': 'In '}, {'type': 'image'}, {'type': 'text', 'text': ' I see'}]
    """
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(text.split(IMAGE_PLACE)):
        parts += [{"type": "image"}] * (number > 0)
        parts += [{"type": "text", "text": piece}] * bool(piece)
    return parts


def is_text(value: object) -> bool:
    """Whether it is a string that a file can hold; an unpaired surrogate, which JSON can spell, cannot be stored."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def answer_text(messages: Sequence[Message]) -> str:
    """The text of an answer, or of a prompt with one turn."""
    return " ".join(message["content"] for message in messages)


def embedded_name(text: str) -> str | None:
    """A name for an image that is given as base64, the same for the same image; None for a path.

    >>> embedded_name("photos/iVBORw0KGgo.png"), embedded_name("data:image/png;base64,AAAA")
    (None, 'base64-bde6da8e9d39')
    """
    return f"base64-{hashlib.sha256(text.encode()).hexdigest()[:12]}" if _BASE64.match(text) else None


def decode_base64(text: str, name: str) -> bytes:
    """The bytes that base64, bare, URL-safe or in a data URI, stands for.

    Raises RecordError, which says `name`, for others.
    """
    found = _BASE64.match(text)
    if found and found["python"]:
        raise RecordError(
            f"image {brief(name)} is bytes as Python prints them, b'...'; give base64 without b and quotes"
        )
    bare = "".join(text[found.end() if found else 0 :].split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except ValueError as error:
        raise RecordError(f"image {brief(name)} is no valid base64 ({error})") from None


def bare_image(image: Any) -> Any:
    """The path or base64 in `{"path": ...}`, `{"url": ...}` and OpenAI's `{"image_url": {"url": ...}}`.

    An image with its `bytes`, and what is no object, stay as they are.
    """
    while isinstance(image, dict) and not image.get("bytes"):
        image = image.get("path") or image.get("url") or image.get("image_url")
    return image


def load_image(folder: Path, name: object, root: Path | None = None) -> EncodedImage:
    """Read the image `name` below `folder`, or the one that it holds as base64, as `check_image` does.

    Raises RecordError when the path, or the file that it links to, is not below `root` (`folder` by default), is
    missing, or is no image.
    """
    if name is None or name == "":
        raise RecordError("column 'image' is missing")
    if not isinstance(name, str):
        raise RecordError(f"column 'image' is {type(name).__name__}, but must be a path")
    if short := embedded_name(name):
        return check_image(decode_base64(name, short), short)
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to((root or folder).resolve()):
            raise RecordError(f"image {brief(name)} leaves the image folder {folder}")
        if not path.is_file():
            raise RecordError(f"image {brief(name)} is not in {folder}")
        data = path.read_bytes()
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a zero byte, a loop of links
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            kinds = f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}"
            raise RecordError(f"image {brief(name)} is neither a path nor the base64 of a {kinds}") from None
        reason = error.strerror if isinstance(error, OSError) else error  # all of it would repeat the path
        raise RecordError(f"image {brief(name)} cannot be read ({reason})") from None
    return check_image(data, name)


def check_image(data: bytes, name: str) -> EncodedImage:
    """`data` as an image of a record.

    An upright RGB JPEG, PNG or WebP is kept byte for byte, and only its header is read: whether it is whole shows when
    `decode_image` decodes it. Anything else becomes an upright RGB PNG: of an animation the first frame, what is
    transparent on white, deeper grey scaled to 8 bits (`_to_8_bits`). Raises RecordError when it is no image, when its
    depth is unknown, or when it is larger than PIL's limit for decompression bombs.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > _MAX_PIXELS:  # PIL only warns up to twice as many
            raise ValueError(f"{image.width} x {image.height} pixels: it may be a decompression bomb")
        _check_depth(image, data)
        if _is_plain(image, data):
            return EncodedImage(bytes=data, path=os.path.basename(name))
        upright = _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # what a broken file raises in PIL is open-ended
        raise _unreadable(name, error, data) from None
    # The name stays recognisable: COCO annotations are found by it.
    return EncodedImage(bytes=encode_image(upright)["bytes"], path=f"{Path(name).stem}.png")


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether every program shows the file as it is: RGB, opaque, one frame, upright."""
    if image.format not in _KEPT_FORMATS or image.mode != "RGB" or image.has_transparency_data:
        return False
    if getattr(image, "n_frames", 1) > 1:
        return False
    # PIL decodes a whole PNG to look for these.
    if image.format == "PNG" and not any(chunk in data for chunk in _PNG_ORIENTATION):
        return True
    return image.getexif().get(0x0112, 1) not in range(2, 9)


def _check_depth(image: Image.Image, data: bytes) -> None:
    """Raise ValueError for what PIL would read as other colours, without a word."""
    tiff = getattr(image, "tag_v2", {})  # tags 258, 262 and 339: bits, what 0 means, and kind of its values
    is_grey = image.mode[0] in "IF"
    if 2 in tiff.get(339, ()) and not is_grey:
        raise ValueError("its 8 bits have signs; save it without")
    if tiff.get(262) == 0 and is_grey:
        raise ValueError("white is 0 in it, at more than 8 bits; save it with 8")
    is_deep = data[24] == 16 if image.format == "PNG" else 16 in tiff.get(258, ())
    # PIL drops the lower 8 bits of colours.
    if is_deep and not is_grey and np.asarray(image.convert("RGB")).max() < _DARK >> 8:
        raise ValueError("its 16 bits hold fewer, or nothing but black; save it with 8 bits")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode[0] in "IF":  # one band of more than 8 bits, which PIL would clip to black or white
        return Image.fromarray(_to_8_bits(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        layers = Image.new("RGBA", image.size, "white"), image.convert("RGBA")
        return Image.alpha_composite(*layers).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey values in 8 bits, by the range in which they lie.

    - whole numbers: 0 to 255 as they are, 0 to 65,535 without their lower 8 bits.
    - floats: 0 to 1 times 255, 0 to 255 rounded.

    Raises ValueError for values outside of these ranges, and where the highest says too little of the range: for whole
    numbers from 256 to 4095, for floats from above 1 to 16 (an image of 0 to 1 that was resized may exceed 1).
    """
    least, most = float(values.min()), float(values.max())  # NaN if any value is
    is_float = values.dtype.kind == "f"
    is_unclear = 1 < most <= 16 if is_float else 255 < most < _DARK
    if not 0 <= least <= most <= (255 if is_float else 65_535) or is_unclear:
        raise ValueError(f"its values are from {least:g} to {most:g}, of unknown depth; save it with 8 or 16 bits")
    if is_float:
        return np.rint(values * 255 if most <= 1 else values).astype(np.uint8)
    return (values if most <= 255 else values >> 8).astype(np.uint8)


def _unreadable(name: str, error: Exception, data: bytes) -> RecordError:
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # whose own words hold an address in memory, another in every run
        is_tiff = data.startswith((b"II*\0", b"MM\0*"))
        reason = "a TIFF broken or of unknown depth; save it with 8 bits" if is_tiff else "it is no image file"
    return RecordError(f"image {brief(name)} cannot be read ({' '.join(reason.split())})")


def encode_image(image: Image.Image, format: Literal["png", "webp"] = "png") -> EncodedImage:
    """`image` without loss, so that training sees just the pixels that were made.

    WebP is smaller and quicker to make; a side longer than its 16,383 pixels makes it PNG all the same.
    """
    buffer = io.BytesIO()
    if format == "webp" and max(image.size) <= _WEBP_LIMIT:
        image.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(buffer, "PNG", compress_level=1)
    return EncodedImage(bytes=buffer.getvalue(), path=None)


def decode_image(image: EncodedImage) -> Image.Image:
    """The RGB pixels of an encoded image. Raises RecordError when they are cut off or broken."""
    try:
        return Image.open(io.BytesIO(image["bytes"]), formats=_FORMATS).convert("RGB")
    except Exception as error:  # what a broken file raises in PIL is open-ended
        raise _unreadable(image.get("path") or "without a name", error, image["bytes"]) from None


def write_shard(records: Iterable[Record], path: Path) -> None:
    """Write records as one Parquet file with the features in its schema; the file appears whole or not at all.

    Records are written as they come, a group of rows at a time. Without any there is no file.
    """
    partial = path.with_suffix(".partial")
    rows = iter(records)
    first = next(rows, None)
    if first is None:
        return
    # Nearly all of it is images, which are compressed already.
    with pq.ParquetWriter(partial, FEATURES.arrow_schema, compression="none") as writer:
        for group in _row_groups(chain([first], rows)):
            columns = {name: [record[name] for record in group] for name in FEATURES}  # type: ignore[literal-required]
            # Built by pyarrow, not by datasets.Dataset: that one would decode and encode every image on the way.
            writer.write_table(pa.table(columns, schema=FEATURES.arrow_schema))
    partial.replace(path)


def keep_first(path: Path, ids: AbstractSet[str]) -> None:
    """Rewrite a shard so that it holds the first record of each of `ids`; without any there is no file."""

    def records() -> Iterator[Record]:
        left = set(ids)
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_ROW_GROUP):
            for record in batch.to_pylist():
                if record["id"] in left:
                    left.remove(record["id"])
                    yield record

    if ids:
        write_shard(records(), path)
    else:
        path.unlink(missing_ok=True)


def _row_groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    group: list[Record] = []
    size = 0
    for record in records:
        group.append(record)
        size += sum(len(image["bytes"]) for image in record["images"] + record["rejected_images"])
        if len(group) == _ROW_GROUP or size >= _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def read_dataset(folder: Path, needs: Sequence[str] = TEXT_COLUMNS) -> datasets.Dataset:
    """Open a folder that `mfpo build` or `mfpo rank` wrote.

    Raises MfpoError when the folder holds no readable shards or no rows, lacks one of the columns in `needs` or a value
    in one, or when a row has not one rejected image an image.
    """
    shards = sorted(map(str, folder.glob("*.parquet")))
    check_shards(folder)
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
