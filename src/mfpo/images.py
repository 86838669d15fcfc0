"""Images of records: read, checked, decoded and encoded.

They travel encoded (`{"bytes", "path"}`), so that a file on disk goes into the dataset untouched.
"""

import base64
import errno
import hashlib
import io
import os
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from mfpo.errors import RecordError, brief
from mfpo.records import EncodedImage

# Raster formats that PIL decodes itself: others, as EPS, run a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
# What every trainer can open goes into the dataset untouched.
_KEPT_FORMATS = ("JPEG", "PNG", "WEBP")
# How the chunks of a PNG begin that may say how it is turned; they may come after the pixels.
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
# Pixels a side of a WebP.
_WEBP_LIMIT = 16383
# Below it 16 bits are all but black, and most likely 10 or 12 bits in 16.
_DARK = 4096
# PIL's limit for decompression bombs.
_MAX_PIXELS = 89_478_485

# How an image begins that a JSON file holds as base64: a data URI, or what JPEG, PNG, GIF, WebP, BMP and TIFF become;
# and how Python writes bytes.
_BASE64 = re.compile(
    r"\s*(?:(?i:data:[^,]{0,100};base64,)"
    r"|(?=(?:[/_]9j[/_]|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkqA|TU0AK)[\w+/=\s-]{60})"
    r"|(?=(?P<python>b['\"].{60})))",
    re.ASCII,
)


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
    match = _BASE64.match(text)
    if match and match["python"]:
        raise RecordError(
            f"image {brief(name)} is bytes as Python prints them, b'...'; give base64 without b and quotes"
        )
    bare = "".join(text[match.end() if match else 0 :].split()).replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
    except ValueError as error:
        raise RecordError(f"image {brief(name)} is not valid base64 ({error})") from None


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
        raise ValueError("its 8-bit values are signed; save them unsigned")
    if tiff.get(262) == 0 and is_grey:
        raise ValueError("its 0 is white, at more than 8 bits; save it with 8 bits")
    is_deep = data[24] == 16 if image.format == "PNG" else 16 in tiff.get(258, ())
    # PIL drops the lower 8 bits of colours.
    if is_deep and not is_grey and np.asarray(image.convert("RGB")).max() < _DARK >> 8:
        raise ValueError("its 16-bit values use fewer bits, or are all black; save it with 8 bits")


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
        raise ValueError(f"its values, from {least:g} to {most:g}, are of unknown depth; save it with 8 or 16 bits")
    if is_float:
        return np.rint(values * 255 if most <= 1 else values).astype(np.uint8)
    return (values if most <= 255 else values >> 8).astype(np.uint8)


def _unreadable(name: str, error: Exception, data: bytes) -> RecordError:
    reason = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # whose own words hold an address in memory, another in every run
        is_tiff = data.startswith((b"II*\0", b"MM\0*"))
        reason = (
            "a TIFF that is broken or of unknown depth; save it with 8 bits" if is_tiff else "it is not an image file"
        )
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


def changed_share(image: Image.Image, rejected_image: Image.Image) -> float:
    """The share of the pixels in which two RGB images differ, from 0 to 1; 1 for images of two sizes.

    It is measured, not read from the masks, so that it is true for every kind of corruption.
    """
    if image.size != rejected_image.size:
        return 1.0
    return float((np.asarray(image) != np.asarray(rejected_image)).any(axis=-1).mean())
