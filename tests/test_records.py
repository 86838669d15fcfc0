import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mfpo.errors import MfpoError, RecordError
from mfpo.records import check_image, decode_image, load_image, new_record, read_dataset


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
    with pytest.raises(RecordError, match=r"image 'a\.png' cannot be read \(it is no image file\)"):
        check_image(b"no image", "a.png")


def test_image_marks_in_texts_are_dropped():
    image = {"bytes": b"", "path": None}
    texts = {"question": "<image>\nWhat?", "chosen": "A dog <image>.", "rejected": "A cat."}
    record = new_record(id=1, images=[image], source={"dataset": "d", "row": 0}, **texts)
    assert [record[key][0]["content"] for key in ("prompt", "chosen")] == ["What?", "A dog ."]
    with pytest.raises(RecordError, match="'chosen' is empty"):
        new_record(id=1, images=[image], source={"dataset": "d", "row": 0}, **texts | {"chosen": "<image>"})


def test_a_good_file_is_kept_byte_for_byte():
    data = encoded(Image.new("RGB", (4, 4), "red"), "JPEG")
    assert check_image(data, "dir/a.jpg") == {"bytes": data, "path": "a.jpg"}


def test_a_rotated_photo_is_turned_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (6, 3), "red"), "JPEG", exif=exif)
    assert decode_image(check_image(data, "a.jpg")).size == (3, 6)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_other_modes_become_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = decode_image(check_image(encoded(Image.new(mode, (4, 4)), kind), "a"))
    assert (image.mode, image.size) == ("RGB", (4, 4))


def test_16_bits_are_scaled_and_not_clipped():
    values = np.array([[0, 1000, 30_000, 65_535]], dtype=np.uint16)
    pixels = np.asarray(decode_image(check_image(encoded(Image.fromarray(values)), "a.png")))
    np.testing.assert_array_equal(pixels[0, :, 0], values[0] >> 8)


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
