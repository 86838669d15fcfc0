"""The noise levels of one record side by side, to choose a step by eye (paper, section 3.1 and Figure 8)."""

from collections.abc import Mapping
from dataclasses import replace

from PIL import Image, ImageDraw, ImageFont

from mfpo.build.noise import alpha_bar
from mfpo.build.settings import STEPS, BuildSettings
from mfpo.build.steps import Draft, finish_record
from mfpo.errors import SettingError
from mfpo.images import decode_image
from mfpo.records import NOISY, Region, SourceRecord

LEVELS = (*range(0, STEPS, 100), STEPS - 1)
COLUMNS = 4
GAP = 8
LABEL_HEIGHT = 16
# A larger photo is shown smaller, or the twelve tiles would not fit into memory.
LONGEST_SIDE = 1024


def preview(record: SourceRecord, regions: list[Region], settings: BuildSettings) -> Image.Image:
    """The first image of `record`, and its rejected image at t = 0, 100, ..., 900, 999, each with its t and abar_t.

    Each is what `mfpo build` writes for this record with that `noise_step`; `regions` are those that were found in it.
    Raises SettingError when the corruption has no noise, RecordError when an image or a mask is broken.
    """
    if settings.corruption not in NOISY:
        raise SettingError(
            f"corruption {settings.corruption} has no noise levels to preview; choose region, global or random"
        )
    draft = Draft(record, keywords=[])
    tiles = {"original": Image.fromarray(draft.pixels[0])}
    for step in LEVELS:
        built, _ = finish_record(draft, regions, replace(settings, noise_step=step, image_format="png"))
        label = f"t={step}  abar {alpha_bar(step, settings.schedule):.3f}"
        tiles[label] = decode_image(built["rejected_images"][0])
    return grid(tiles)


def grid(tiles: Mapping[str, Image.Image]) -> Image.Image:
    """Images of one size in rows of four, each under its label."""
    font = ImageFont.load_default(12)
    for tile in tiles.values():
        tile.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    first = next(iter(tiles.values()))
    width = max(first.width, *(int(font.getlength(label)) + 1 for label in tiles)) + GAP
    height = first.height + LABEL_HEIGHT + GAP
    rows = -(-len(tiles) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), "white")
    draw = ImageDraw.Draw(page)
    for number, (label, tile) in enumerate(tiles.items()):
        left, top = GAP + number % COLUMNS * width, GAP + number // COLUMNS * height
        draw.text((left, top), label, fill="black", font=font)
        page.paste(tile, (left, top + LABEL_HEIGHT))
    return page
