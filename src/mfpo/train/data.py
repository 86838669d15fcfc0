"""The records to train on, of a folder or in memory: opened, checked, and encoded as the method reads them."""

from functools import partial
from pathlib import Path
from typing import Any

import datasets

from mfpo.dataset import DATASET_IN_MEMORY, TEXT_COLUMNS, column, read_dataset
from mfpo.errors import MfpoError
from mfpo.logprobs.cells import TEXT_AND_IMAGE, columns
from mfpo.logprobs.pairs import Pairs
from mfpo.settings import options_of
from mfpo.train.objectives import OBJECTIVES
from mfpo.train.settings import TrainSettings


def open_data(data: Path | datasets.Dataset, settings: TrainSettings, *, is_eval: bool = False) -> datasets.Dataset:
    """The dataset, with the columns that the method needs. Raises MfpoError when it is not made for the method.

    Held-out pairs, `is_eval`, need no levels, but rejected images for any method: how much the answers depend on the
    image is measured with them.
    """
    method = OBJECTIVES[settings.method]
    needs = list(dict.fromkeys([*TEXT_COLUMNS, *columns(_cells(settings, is_eval=is_eval))]))
    needs += ["corruption"] * (method.corruption is not None)
    needs += ["level"] * (bool(settings.curriculum) and not is_eval)
    dataset = read_dataset(data, needs=needs)
    if method.corruption:
        kinds = {corruption["kind"] for corruption in column(dataset, "corruption")}
        if kinds != {method.corruption}:
            raise MfpoError(
                f"{data_name(data)}: method {settings.method} needs rejected images of kind {method.corruption}, but "
                f"these are {', '.join(sorted(kinds))}; run `mfpo build` with `corruption={method.corruption}`"
            )
    return dataset


def data_name(data: Path | datasets.Dataset) -> str:
    """How messages and provenance call it."""
    return str(data) if isinstance(data, Path) else DATASET_IN_MEMORY


def open_pairs(dataset: datasets.Dataset, processor: Any, settings: TrainSettings, *, is_eval: bool = False) -> Pairs:
    """The records as the method reads them; held-out ones with what both margins take."""
    method = OBJECTIVES[settings.method]
    weigh = partial(method.weigh, **options_of(settings, method.weigh)) if method.weigh else None
    cells = _cells(settings, is_eval=is_eval)
    return Pairs(
        dataset,
        processor,
        cells=cells,
        max_length=settings.max_length,
        weigh=weigh,
        batch_setting="per_device_train_batch_size",
    )


def _cells(settings: TrainSettings, *, is_eval: bool) -> tuple[str, ...]:
    """The method's cells; of held-out pairs also those of the text and the image margin."""
    return (*OBJECTIVES[settings.method].cells, *(TEXT_AND_IMAGE if is_eval else ()))
