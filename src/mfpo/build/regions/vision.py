"""What all transformers segmenters share: loading, precision, batches, and regions out of masks."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer

from mfpo.build.regions import Search
from mfpo.build.regions.matching import is_region
from mfpo.build.settings import RegionSettings
from mfpo.errors import MfpoError, RecordError, first_line
from mfpo.folders import file_states
from mfpo.hub import check_kind, find_model
from mfpo.masks import encode_mask
from mfpo.models import BROKEN, default_dtype, device, load_weights, quiet
from mfpo.records import Region

T = TypeVar("T")
Found = tuple[Tensor, float]
"""A keyword's mask, (height, width) of booleans at the size of the image, and its score."""

# Models resize such images to a strip of a few pixels, or of none.
_NARROWEST = 20
# So many pixels of masks are resized at once, 0.25 GB; or one mask, if it has more.
_MASK_PIXELS = 2**26


@quiet()
def load_vision_model(name: str, kinds: Mapping[str, Any]) -> tuple[Any, Path]:
    """The model in the folder, or of the hub's, `name`, on the GPU if there is one, in evaluation mode; and its folder.

    `kinds` maps each supported model_type to its transformers class.
    Raises MfpoError when it is missing, of another kind, not in safetensors, or lacks weights.
    """
    folder = find_model(name)
    kind = check_kind(folder, kinds)
    # float32 also where it computes in bfloat16: see `inference`.
    return load_weights(kinds[kind], folder, dtype=torch.float32).to(device()), folder


def model_state(folder: Path) -> dict[str, list[int]]:
    """The states of a model's files, which identify it when a killed build resumes."""
    return file_states(folder.iterdir())


def load_image_processor(cls: Any, folder: Path) -> Any:
    """The image processor beside a model. Raises MfpoError when there is none."""
    return _load_part(cls, folder)


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer beside a model; a phrase that is too long keeps its end, where an English phrase has its head.

    Raises MfpoError when there is none.
    """
    # Without one transformers makes an empty one, to which all words are the same.
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json", "vocab.txt")):
        raise MfpoError(f"{folder}: no tokenizer there (tokenizer.json or vocab.*); save it beside the model")
    tokenizer = _load_part(AutoTokenizer, folder, trust_remote_code=False)
    tokenizer.truncation_side = "left"
    return tokenizer


@contextmanager
def inference() -> Iterator[None]:
    """Without gradients, and in bfloat16 on a GPU.

    By autocast, which leaves coordinates in float32: bfloat16 would place a box on a raster of 1/256 of the image.
    """
    with (
        torch.inference_mode(),
        torch.autocast(device().type, torch.bfloat16, enabled=default_dtype() == torch.bfloat16),
    ):
        yield


def batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """`items` in order, `size` at a time."""
    return (items[start : start + size] for start in range(0, len(items), size))


def encode_images(processor: Any, searches: Sequence[Search]) -> Any:
    """The images of `searches` as the model takes them, (n, 3, height, width) in `pixel_values`."""
    return processor([Image.fromarray(search.pixels) for search in searches], return_tensors="pt").to(device())


def encode_texts(tokenizer: Any, texts: Sequence[str], model: Any) -> Any:
    """`texts` as the text tower of `model` takes them, all of its full length, so that a batch changes nothing."""
    longest = model.config.text_config.max_position_embeddings
    return tokenizer(list(texts), padding="max_length", truncation=True, max_length=longest, return_tensors="pt").to(
        device()
    )


def size_of(search: Search) -> tuple[int, int]:
    """Height and width of a search's image."""
    height, width = search.pixels.shape[:2]
    return height, width


def too_narrow(search: Search) -> RecordError | None:
    """Why an image cannot be searched of which a model would see a strip of a few pixels, or of none."""
    height, width = size_of(search)
    if max(height, width) <= _NARROWEST * min(height, width):
        return None
    return RecordError(f"image {search.number} is {width} x {height}, too narrow to search for keywords")


def resize_masks(masks: Tensor, search: Search) -> Tensor:
    """`masks`, (n, height, width), at the size of the search's image."""
    return torch.nn.functional.interpolate(masks[None].float(), size_of(search), mode="bilinear")[0]


def unite(masks: Tensor, search: Search, threshold: float) -> Tensor:
    """The pixels of the search's image, (height, width), that lie above `threshold` in one of `masks`, (n, h, w)."""
    height, width = size_of(search)
    union = torch.zeros(height, width, dtype=torch.bool, device=masks.device)
    for some in masks.split(max(1, _MASK_PIXELS // (height * width))):
        if len(some):
            union |= (resize_masks(some, search) > threshold).any(dim=0)
    return union


def search_images(
    searches: Sequence[Search],
    settings: RegionSettings,
    find: Callable[[Sequence[Search]], list[list[Found]]],
) -> list[list[Region] | RecordError]:
    """What a segmenter returns, where `find` gives each keyword's mask and score in at most `region_batch` images."""
    results: dict[int, list[Region] | RecordError] = {}
    for number, search in enumerate(searches):
        if fault := too_narrow(search):
            results[number] = fault
        elif not search.keywords:
            results[number] = []
    # By size, as some models take only images of one shape at once.
    left = sorted(set(range(len(searches))) - set(results), key=lambda number: (size_of(searches[number]), number))
    for numbers in batches(left, settings.region_batch):
        batch = [searches[number] for number in numbers]
        with inference():
            scored_masks = find(batch)
        for number, search, masks in zip(numbers, batch, scored_masks, strict=True):
            results[number] = _to_regions(search, masks, settings)
    return [results[number] for number in range(len(searches))]


def _to_regions(search: Search, scored_masks: Sequence[Found], settings: RegionSettings) -> list[Region]:
    regions = []
    for keyword, (mask, score) in zip(search.keywords, scored_masks, strict=True):
        rle = encode_mask(mask.cpu().numpy())
        if is_region(rle, settings):
            regions.append(Region(keyword=keyword["text"], score=score, mask=rle, image=search.number))
    return regions


@quiet()
def _load_part(cls: Any, folder: Path, **options: Any) -> Any:
    try:
        return cls.from_pretrained(folder, **options)
    except BROKEN as error:
        reason = first_line(error)
        raise MfpoError(f"{folder}: its {cls.__name__} cannot be loaded ({reason}); save it beside the model") from None
