import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageFile

from mfpo.dataset import read_dataset
from mfpo.errors import MfpoError, RecordError
from mfpo.images import check_image, decode_image, load_image
from mfpo.records import new_record


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["a\0b.png", "x" * 300 + ".png", "loop.png", None, "", 7, {"path": "a.png"}])
def test_names_that_are_no_image(tmp_path, name):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    with pytest.raises(RecordError, match="image"):
        load_image(tmp_path, name)


def test_the_reason_is_the_same_in_every_run():
    with pytest.raises(RecordError, match=r"image 'a\.png' cannot be read \(it is not an image file\)"):
        check_image(b"no image", "a.png")


@pytest.mark.parametrize("change", [{"id": "\ud800"}, {"question": "What \ud800?"}, {"chosen": "\udc80"}])
def test_texts_that_no_file_can_hold(change):
    row = {"id": "a", "question": "What?", "chosen": "A dog.", "rejected": "A cat."} | change
    with pytest.raises(RecordError, match=f"column '{next(iter(change))}' holds an unpaired surrogate"):
        new_record(images=[{"bytes": b"", "path": None}], source={"dataset": "d", "row": 0}, **row)


@pytest.mark.parametrize("name", ["../secret.png", "link.png", "inside/../../secret.png", "linked/secret.png"])
def test_paths_that_leave_the_folder(tmp_path, name):
    folder = tmp_path / "images"
    (folder / "inside").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(encoded(Image.new("RGB", (4, 4))))
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    for path in (name, str(tmp_path / "secret.png")):
        with pytest.raises(RecordError, match="leaves the image folder"):
            load_image(folder, path)
    assert load_image(folder, name, root=tmp_path)["path"].endswith(".png")


def test_links_and_absolute_paths_that_stay_inside(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (4, 4))))
    (tmp_path / "b.png").symlink_to(tmp_path / "a.png")
    for name in ("b.png", str(tmp_path / "a.png"), "./x/../a.png"):
        assert load_image(tmp_path, name)["path"] == Path(name).name


def test_image_marks_in_texts_are_dropped():
    image = {"bytes": b"", "path": None}
    texts = {"question": "<image>\nWhat?", "chosen": "A dog <image>.", "rejected": "A cat."}
    record = new_record(id=1, images=[image], source={"dataset": "d", "row": 0}, **texts)
    assert [record[key][0]["content"] for key in ("prompt", "chosen")] == ["What?", "A dog ."]
    with pytest.raises(RecordError, match="'chosen' is empty"):
        new_record(id=1, images=[image], source={"dataset": "d", "row": 0}, **texts | {"chosen": "<image>"})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_plain_file_is_kept_byte_for_byte_and_not_decoded(kind, monkeypatch):
    data = encoded(Image.new("RGB", (4, 4), "red"), kind)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert check_image(data, "dir/a.x") == {"bytes": data, "path": "a.x"}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_that_was_cut_off_is_found_when_it_is_decoded(kind):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(RecordError, match=r"^image 'a\.x' cannot be read \("):
        decode_image(check_image(data[: len(data) // 2], "a.x"))


def test_a_cut_off_file_that_must_be_converted_is_found_at_once():
    noise = np.random.default_rng(0).integers(0, 256, (60, 60), dtype=np.uint8)
    data = encoded(Image.fromarray(noise))
    with pytest.raises(RecordError, match=r"image 'a\.png' cannot be read"):
        check_image(data[: len(data) // 2], "a.png")


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_rotated_photo_is_turned_upright(kind):
    image = Image.new("RGB", (16, 8), "red")
    image.paste("blue", (0, 0, 8, 8))
    options = {} if kind == "PNG" else {"quality": 100}
    kept = check_image(encoded(image, kind, exif=turned(6), **options), "a.jpg")
    pixels = np.asarray(decode_image(kept))
    assert pixels.shape == (16, 8, 3)
    assert pixels[2, 4, 2] > 200 > 50 > pixels[13, 4, 2]  # what was on the left is at the top
    assert kept["path"] == "a.png"


def test_a_png_whose_orientation_comes_after_its_pixels():
    data = encoded(Image.new("RGB", (6, 3), "red"), exif=turned(6))
    start = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[start : start + 4], "big")
    chunk, rest = data[start : start + length], data[:start] + data[start + length :]
    end = rest.index(b"IEND") - 4
    assert decode_image(check_image(rest[:end] + chunk + rest[end:], "a.png")).size == (3, 6)


@pytest.mark.parametrize("orientation", [1, 0, 9])
def test_an_upright_photo_with_exif_is_kept(orientation):
    data = encoded(Image.new("RGB", (6, 3), "red"), "JPEG", exif=turned(orientation))
    assert check_image(data, "a.jpg")["bytes"] == data


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    kept = check_image(data, "a.x")
    assert Image.open(io.BytesIO(kept["bytes"])).format == "PNG"
    assert np.abs(np.asarray(decode_image(kept)).astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1", "F"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode in ("CMYK", "F") else "PNG"
    image = decode_image(check_image(encoded(Image.new(mode, (4, 4)), kind), "a"))
    assert (image.mode, image.size) == ("RGB", (4, 4))


def test_a_cmyk_jpeg_has_its_colours():
    data = encoded(Image.new("RGB", (8, 8), "red").convert("CMYK"), "JPEG", quality=100)
    assert np.abs(np.asarray(decode_image(check_image(data, "a.jpg"))).astype(int) - (255, 0, 0)).max() <= 8


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_what_is_transparent_is_white(kind):
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    data = encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = np.asarray(decode_image(check_image(data, "a")))
    assert pixels.tolist() == [[[200, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_one_colour_that_stands_for_transparent_is_white(mode):
    image = Image.new("RGB", (2, 1), "white").convert(mode)
    image.putpixel((1, 0), 0 if mode != "RGB" else (0, 0, 0))
    data = encoded(image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert np.asarray(decode_image(check_image(data, "a"))).min() == 255


def test_16_bits_are_scaled_and_not_clipped():
    values = np.array([[0, 1000, 30_000, 65_535]], dtype=np.uint16)
    pixels = np.asarray(decode_image(check_image(encoded(Image.fromarray(values)), "a.png")))
    np.testing.assert_array_equal(pixels[0, :, 0], values[0] >> 8)


RAMP = np.linspace(0, 1, 256, dtype=np.float32)[None].repeat(2, axis=0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (RAMP, np.rint(RAMP * 255)),
        (RAMP * 255, np.rint(RAMP * 255)),
        (RAMP * 0.4, np.rint(RAMP * 102)),
        (np.ones_like(RAMP), np.full_like(RAMP, 255)),
        (np.zeros_like(RAMP), np.zeros_like(RAMP)),
        ((RAMP * 255).astype(np.int32), (RAMP * 255).astype(np.int32)),
        ((RAMP * 65_535).astype(np.int32), (RAMP * 65_535).astype(np.int32) >> 8),
        ((RAMP * 255).astype(np.uint16), (RAMP * 255).astype(np.uint16)),
        ((RAMP * 4096).astype(np.uint16), (RAMP * 4096).astype(np.uint16) >> 8),
    ],
)
def test_deep_grey_is_scaled_by_the_range_of_its_values(values, expected):
    pixels = np.asarray(decode_image(check_image(encoded(Image.fromarray(values), "TIFF"), "a.tif")))
    np.testing.assert_array_equal(pixels, expected.astype(np.uint8)[:, :, None].repeat(3, axis=2))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (RAMP * 65_535, "from 0 to 65535"),
        (RAMP - 0.5, "from -0.5 to 0.5"),
        (RAMP * 1.02, "from 0 to 1.02"),
        (RAMP * 12, "from 0 to 12"),
        (np.where(RAMP > 0.5, np.float32("nan"), RAMP), "from nan to nan"),
        (np.where(RAMP > 0.5, np.float32("inf"), RAMP), "from 0 to inf"),
        ((RAMP * 65_536).astype(np.int32), "from 0 to 65536"),
        ((RAMP * 200 - 100).astype(np.int32), "from -100 to 100"),
        ((RAMP * 4095).astype(np.uint16), "from 0 to 4095"),  # 12 bits
        ((RAMP * 256).astype(np.uint16), "from 0 to 256"),
    ],
)
def test_grey_of_unknown_depth_is_set_aside(values, reason):
    with pytest.raises(
        RecordError, match=rf"image 'a\.tif' cannot be read \(its values, {reason}, are of unknown depth"
    ):
        check_image(encoded(Image.fromarray(values), "TIFF"), "a.tif")


def deep_png(values):
    """A PNG of 16 bits a colour, which PIL cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, {2: 4, 3: 2, 4: 6}[values.shape[2]], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("bands", [2, 3, 4])
def test_colours_of_16_bits_lose_their_lower_8_or_are_set_aside(bands):
    values = (RAMP * 65_535).astype(np.uint16)[:, :, None].repeat(bands, axis=2)
    values[:, :, 3 if bands == 4 else 1 if bands == 2 else 2] = 65_535  # the alpha, or the blue
    pixels = np.asarray(decode_image(check_image(deep_png(values), "a.png")))
    np.testing.assert_array_equal(pixels[:, :, 0], values[:, :, 0] >> 8)
    for most in (255, 4095):
        values = np.full_like(values, 65_535) if bands != 3 else values
        values[:, :, : 3 if bands > 2 else 1] = (RAMP * most).astype(np.uint16)[:, :, None]
        with pytest.raises(RecordError, match="its 16-bit values use fewer bits"):
            check_image(deep_png(values), "a.png")


def plain_tiff(values, tags):
    """A little-endian TIFF of grey `values`, with numbers as further `tags`."""
    data = values.tobytes()
    known = {256: values.shape[1], 257: values.shape[0], 258: 8 * values.itemsize, 259: 1, 262: 1, 277: 1}
    known |= {278: values.shape[0], 279: len(data)} | tags
    known[273] = 8 + 2 + 12 * (len(known) + 1) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, known[tag]) for tag in sorted(known))
    return b"II*\0" + struct.pack("<IH", 8, len(known)) + entries + struct.pack("<I", 0) + data


@pytest.mark.parametrize(
    ("values", "tags", "reason"),
    [
        ((RAMP * 200 - 100).astype(np.int16), {339: 2}, "from -100 to 100"),
        ((RAMP * 4e9).astype(np.uint32), {339: 1}, "of unknown depth"),
        ((RAMP * 200 - 100).astype(np.int8), {339: 2}, "are signed"),
        ((RAMP * 65_535).astype(np.uint16), {262: 0}, "0 is white"),
    ],
)
def test_tiffs_that_pil_reads_otherwise_are_set_aside(values, tags, reason):
    with pytest.raises(RecordError, match=reason):
        check_image(plain_tiff(values, tags), "a.tif")


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        (RAMP.astype(np.float16), {339: 3}),
        (RAMP.astype(np.float64), {339: 3}),
        (np.repeat(RAMP.astype(np.float32)[:, :, None], 3, axis=2), {339: 3, 277: 3, 262: 2}),
    ],
)
def test_a_tiff_of_other_floats_is_not_said_to_be_no_image(values, tags):
    reason = r"image 'a\.tif' cannot be read \(a TIFF that is broken or of unknown depth; save it with 8 bits\)"
    with pytest.raises(RecordError, match=reason):
        check_image(plain_tiff(values, tags), "a.tif")


def test_a_small_uint32_tiff_is_taken_as_8_bits():
    values = (RAMP * 255).astype(np.uint32)
    pixels = np.asarray(decode_image(check_image(plain_tiff(values, {339: 1}), "a.tif")))
    np.testing.assert_array_equal(pixels[:, :, 1], values)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I;16B"])
def test_a_grey_ramp_stays_one_in_every_mode(mode):
    ramp = Image.fromarray((RAMP * 255).astype(np.uint8))
    made = {
        "PA": lambda: ramp.convert("P").convert("PA"),
        "LAB": lambda: Image.merge("LAB", [ramp, Image.new("L", ramp.size, 128), Image.new("L", ramp.size, 128)]),
        "I;16": lambda: ramp.convert("I").convert("I;16"),
        "I;16B": lambda: ramp.convert("I").convert("I;16B"),
    }.get(mode, lambda: ramp.convert(mode))()
    pixels = np.asarray(decode_image(check_image(encoded(made, "TIFF"), "a.tif"))).astype(int)
    # LAB's lightness is not linear in grey.
    np.testing.assert_allclose(pixels[:, :, 0], np.rint(RAMP * 255), atol=30 if mode == "LAB" else 1)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 3)])
def test_sizes_that_are_odd_but_no_fault(size):
    data = encoded(Image.new("RGB", size, "red"))
    assert decode_image(check_image(data, "a.png")).size == size


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_a_decompression_bomb_is_refused_by_its_header(side):
    data = bytearray(encoded(Image.new("RGB", (1, 1))))
    data[16:24] = side.to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    with pytest.raises(RecordError, match=r"image 'a\.png' cannot be read \(.*decompression bomb"):
        check_image(bytes(data), "a.png")


def test_formats_that_run_a_program_are_refused():
    with pytest.raises(RecordError, match="cannot be read"):
        check_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "a.eps")


@pytest.mark.parametrize("is_empty", [True, False])
def test_shards_that_are_none_or_hold_nothing(tmp_path, preference_data, is_empty):
    shard = tmp_path / "train-00000.parquet"
    shard.write_bytes(b"no parquet")
    if is_empty:
        pq.write_table(pq.read_table(next(preference_data.glob("*.parquet"))).slice(0, 0), shard)
    with pytest.raises(MfpoError, match=r"cannot be read|holds no records"):
        read_dataset(tmp_path)
