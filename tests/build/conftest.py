"""What the tests of a whole build share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mfpo.images import encode_image
from mfpo.masks import encode_mask


@pytest.fixture
def content() -> Callable[[Path], dict[str, Any]]:
    """All files of a build's folder, by name, without the seconds that it took."""

    def read(folder: Path) -> dict[str, Any]:
        files: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir()}
        summary = json.loads((folder / "summary.json").read_text())
        return files | {"summary.json": {key: value for key, value in summary.items() if "seconds" not in key}}

    return read


@pytest.fixture
def write_pairs() -> Callable[..., None]:
    """Writes pairs in TRL's format: row 2 has no answer, row 6 half an image, row 9 the id of row 1."""

    def write(path: Path, count: int = 14, *, objects: bool = True) -> None:
        mask = np.zeros((24, 36), dtype=bool)
        mask[4:12, 6:18] = True
        rows = []
        for number in range(count):
            pixels = np.random.default_rng(number).integers(0, 256, (24, 36, 3), dtype=np.uint8)
            rows.append(
                {
                    "id": "r1" if number == 9 else f"r{number}",
                    "images": [encode_image(Image.fromarray(pixels))],
                    "prompt": "What is there?",
                    "chosen": "" if number == 2 else "A dog on a lawn.",
                    "rejected": "A cat.",
                    "objects": [{"name": "dog", "mask": encode_mask(mask)}] if objects else None,
                }
            )
        rows[6]["images"][0]["bytes"] = rows[6]["images"][0]["bytes"][:200]
        pq.write_table(pa.Table.from_pylist(rows), path)

    return write
