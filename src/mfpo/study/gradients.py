"""The image loss's gradient compared with those of the two other losses: the experiment `image-gradients`."""

from typing import Any

import numpy as np

from mfpo.dataset import read_dataset
from mfpo.models import base_of, load_model
from mfpo.probe.dependence import pair_logps
from mfpo.probe.gradients import image_pull
from mfpo.processors import load_processor
from mfpo.study.experiments import BASE, experiment, mfpo
from mfpo.study.results import Result, Table
from mfpo.study.statistics import Scores, estimate
from mfpo.study.study import NotOnScale, Study
from mfpo.study.trials import Data, Trial

# Pairs that are looked at, and bytes of the largest model that this is done for.
_PULLED, _LARGEST_PULLED = 80, 2 << 30

# The columns, which are what `image_pull` gives.
_PULL = {"norm": "norm, by the text term's", "text": "cosine with the text term", "margin": "with the margin term"}


@experiment("image-gradients")
def image_gradients(study: Study) -> Result:
    """How the image term pulls the weights beside the others, by kind of rejected image, before training and after."""
    base = study.scale.base
    folders = [base, base_of(base)] if (base / "adapter_config.json").exists() else [base]
    if sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors")) > _LARGEST_PULLED:
        raise NotOnScale("image-gradients holds three gradients of all weights; use a model of at most 2 GiB")
    kinds = {
        "region": Data(),
        "region, DDPM's schedule": Data(schedule="linear"),
        "region, what only y_w names": Data(differing=True),
        "whole image": Data(corruption="global"),
        "crop": Data(corruption="crop"),
    }
    trials = {f"{kind}, before": (data, BASE) for kind, data in kinds.items()}
    trials |= {f"{kind}, after": (kinds[kind], mfpo(kinds[kind])) for kind in ("region", "crop")}
    rows = {row: [_pull(study, data, trial, seed) for seed in study.seeds] for row, (data, trial) in trials.items()}
    table = Table({row: {name: estimate(by_seed, name) for name in _PULL} for row, by_seed in rows.items()}, _PULL)
    notes = [
        f"Measured on batches of 8 from the first {_PULLED} training pairs. A cosine of 0 means that the two losses "
        "neither help nor hinder each other."
    ]
    return Result("Gradient of the image loss", table, notes=notes)


def _pull(study: Study, data: Data, trial: Trial, seed: int) -> Scores:
    """The columns, batch by batch, (batches, 2), computed unless they have been."""
    key = trial.key(study.with_rate(trial).settings, Trial(data=data).key(), study.scale.trained_on)

    def pull() -> Any:
        folder, dataset = study.model(trial, seed), read_dataset(study.scale.data(data, seed))
        model = load_model(folder)
        dataset = dataset.select(range(min(_PULLED, len(dataset))))
        base, processor = load_model(study.scale.base), load_processor(study.scale.base)
        model.get_encoder(modality="image").requires_grad_(False)
        return image_pull(model, processor, dataset, pair_logps(base, processor, dataset)).tolist()

    columns = np.array(study.kept(f"gradients-{key}-{seed}", pull)).T
    return {name: np.stack([values, np.ones_like(values)], axis=1) for name, values in zip(_PULL, columns, strict=True)}
