"""Small datasets with regions, as `mfpo build` writes them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mfpo.images import encode_image
from mfpo.masks import encode_mask
from mfpo.records import Record, Region, new_record
from mfpo.shards import write_shard


def drawn_mask(width: int, height: int, seed: int) -> np.ndarray:
    """A random ellipse, (height, width)."""
    random = np.random.default_rng(seed)
    left, top = random.integers(0, width // 2), random.integers(0, height // 2)
    image = Image.new("1", (width, height))
    box = [left, top, left + random.integers(10, width // 2), top + random.integers(10, height // 2)]
    ImageDraw.Draw(image).ellipse([int(side) for side in box], fill=1)
    return np.asarray(image)


def make_record(
    id: str, chosen: str, words: Sequence[str], *, width: int = 60, height: int = 40, seed: int = 0, images: int = 1
) -> Record:
    """A record of random pixels, each of `words` with a region in its first image."""
    random = np.random.default_rng(seed)
    encoded = [
        encode_image(Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)))
        for _ in range(images)
    ]
    source = new_record(
        id=id,
        images=encoded,
        question="What is there?",
        chosen=chosen,
        rejected=chosen + " And a cow.",
        source={"dataset": "test", "row": seed},
    )
    regions = [
        Region(keyword=word, score=1.0, mask=encode_mask(drawn_mask(width, height, seed * 10 + n)), image=0)
        for n, word in enumerate(words)
    ]
    corruption = {"kind": "region", "schedule": "sigmoid", "step": 500, "seed": 0, "fallback": not words}
    keywords = [{"text": word, "score": 1.0} for word in words]
    return dict(source, rejected_images=encoded, keywords=keywords, regions=regions, corruption=corruption)


GOOD = [
    make_record("r0", "A dog on a bench.", ["dog", "bench"], seed=1),
    make_record("r1", "A red car, and the red car is on a carpet.", ["red car"], width=40, height=60, seed=2),
    make_record("r2", "An old clock.", ["clock"], width=32, height=32, seed=3),
    make_record("r3", "I see a boat and a kite.", ["kite", "boat"], width=90, height=50, seed=4),
    make_record("r4", "It is a cup.", ["cup"], seed=5),
]


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five records of several shapes, all with regions."""
    folder = tmp_path_factory.mktemp("good")
    write_shard(GOOD, folder / "data-00000.parquet")
    return folder


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same five, and four that no probe can use: no region, two images, a broken image, a mask of another size."""
    broken = make_record("broken", "A dog.", ["dog"], seed=6)
    broken["images"][0]["bytes"] = broken["images"][0]["bytes"][:200]
    wrong = make_record("wrong", "A dog.", ["dog"], seed=7)
    wrong["regions"][0]["mask"] = encode_mask(drawn_mask(50, 40, 1))
    folder = tmp_path_factory.mktemp("mixed")
    bad = [make_record("none", "A dog.", [], seed=8), make_record("two", "A dog.", ["dog"], seed=9, images=2)]
    write_shard([*bad, *GOOD, broken, wrong], folder / "data-00000.parquet")
    return folder
