"""Whether a model's answers depend on the image: how they change under noise (paper, Figure 1)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mfpo.answer.greedy import greedy
from mfpo.build.noise import add_noise
from mfpo.build.settings import Schedule
from mfpo.build.steps import generator
from mfpo.errors import MfpoError, RecordError
from mfpo.evaluate.figures import Figure, Tally, figure_of, mean, share
from mfpo.folders import whole_folder
from mfpo.logprobs.sequences import collate, encode, pad_id, sequence_logps
from mfpo.models import load_model
from mfpo.probe.cases import Case, Cases, progress, read_cases
from mfpo.probe.inpainting import hide
from mfpo.probe.results import lines_by_model, write_results
from mfpo.probe.settings import DistortionSettings
from mfpo.processors import load_processor
from mfpo.records import answer_text
from mfpo.report.page import Panels
from mfpo.report.plots import limits_of, plot

Where = Literal["image", "region", "inpainted"]
# By id: whether the answer stayed the same, and the drop of log p(y_w).
Outcomes = dict[str, tuple[bool, float]]
# Where noise is, and what it is compared with: noise leaves much of a region to be seen.
WHERE: dict[Where, str] = {"image": "whole image", "region": "key region"}
INPAINTED: dict[Where, str] = {"inpainted": "no noise: key region inpainted"}

_SAME = (
    "Greedy answers that match those on the clean image word for word, with 95 % intervals. Answers that stay the same "
    "when the image is gone do not depend on it."
)
_DROP = "log p(y_w | m, t) - log p(y_w | noised m, t), mean over the records, with 95 % intervals."


@dataclass(frozen=True)
class Distortion:
    """The effect of noise at `step` on a model's answers; `step` is None where regions are inpainted instead.

    `same` is the share of its greedy answers, in percent, that are word for word those on the clean image; `drop` the
    mean of log p(y_w | m, t) - log p(y_w | noised m, t), in nats.
    """

    model: str
    where: Where
    step: int | None
    same: Figure
    drop: Figure


@dataclass(frozen=True)
class Distortions:
    rows: list[Distortion]
    cases: Cases


@dataclass(frozen=True)
class Asked:
    """The greedy answer of a model to a case, and its log p of the chosen one."""

    answer: str
    logp: float


def probe_distortion(data: Path, models: Mapping[str, Path], out: Path, settings: DistortionSettings) -> Distortions:
    """Write results.json and report.html on `models`, by name, into the folder `out`.

    All models and steps see one and the same draw of noise a record. Raises MfpoError before anything is asked when a
    model or the dataset cannot be used.
    """
    processors = {name: load_processor(path) for name, path in models.items()}

    def check(case: Case) -> None:
        for processor in processors.values():
            encoded = encode(processor, [case.image], case.prompt, [case.chosen], max_length=settings.max_length)
            if encoded.cut[0]:
                raise RecordError(f"prompt and answer have more than max_length={settings.max_length} tokens")

    provenance = {"command": "probe distortion", "data": data, "models": models, "settings": asdict(settings)}
    with whole_folder(out, provenance) as folder:
        cases = read_cases(data, settings.limit, check)
        rows: list[Distortion] = []
        for name, path in models.items():
            model = load_model(path)
            rows += distortion(name, model, processors[name], cases, settings)
            del model  # two models need not fit into memory
        question = "answers to the same questions while noise destroys the image"
        panels = _panels(rows)
        write_results(
            folder, "Distorted images", question, data=data, settings=settings, cases=cases, rows=rows, panels=panels
        )
    return Distortions(rows, cases)


def distortion(
    name: str, model: Any, processor: Any, cases: Cases, settings: DistortionSettings
) -> Iterator[Distortion]:
    """The figures of one model, the whole image before the key region, by step; then those of inpainted regions."""
    outcomes: dict[tuple[Where, int | None], Outcomes] = {
        **{(where, step): {} for where in WHERE for step in settings.steps},
        ("inpainted", None): {},
    }
    batches = math.ceil(len(cases.rows) / settings.batch_size)
    asked = _outcomes(model, processor, cases, settings)
    for place, by_id in progress(asked, f"asking {name}", batches * len(outcomes)):
        outcomes[place] |= by_id
    for (where, step), by_id in outcomes.items():
        same = Tally({id: (float(is_same), 1.0) for id, (is_same, _) in by_id.items()}, share)
        drop = Tally({id: (drop, 1.0) for id, (_, drop) in by_id.items()}, mean)
        yield Distortion(name, where, step, figure_of(same), figure_of(drop))


def _outcomes(
    model: Any, processor: Any, cases: Cases, settings: DistortionSettings
) -> Iterator[tuple[tuple[Where, int | None], Outcomes]]:
    """The outcomes of each batch of cases, for each place and step."""
    places: list[tuple[Where, int | None]] = [*((where, step) for step, where in product(settings.steps, WHERE))]
    places.append(("inpainted", None))
    for start in range(0, len(cases.rows), settings.batch_size):
        batch = cases.open(cases.rows[start : start + settings.batch_size])
        clean = ask(model, processor, batch, settings)
        for where, step in places:
            distorted = [
                without_regions(case)
                if step is None
                else noise(case, where, step=step, schedule=settings.schedule, seed=settings.seed)
                for case in batch
            ]
            answers = zip(batch, clean, ask(model, processor, distorted, settings), strict=True)
            yield (where, step), {case.id: (a.answer == b.answer, a.logp - b.logp) for case, a, b in answers}


def noise(case: Case, where: Where, *, step: int, schedule: Schedule, seed: int) -> Case:
    """The case with its image noised, all of it or the regions of its keywords.

    The noise is drawn from the seed and the record's id: it is the same at every step, and the same in a region as
    there in the whole image.
    """
    pixels = np.asarray(case.image)
    everywhere = np.ones(pixels.shape[:2], dtype=bool)
    noised = add_noise(pixels, everywhere, step=step, schedule=schedule, rng=generator(seed, case.id))
    if where == "region":
        mask = np.any(list(case.masks.values()), axis=0)
        noised = np.where(mask[..., None], noised, pixels)
    return replace(case, image=Image.fromarray(noised))


def without_regions(case: Case) -> Case:
    """The case with the regions of its keywords inpainted."""
    hidden = hide(np.asarray(case.image), np.any(list(case.masks.values()), axis=0))
    return replace(case, image=Image.fromarray(hidden))


def ask(model: Any, processor: Any, cases: Sequence[Case], settings: DistortionSettings) -> list[Asked]:
    """What the model answers, and what it gives the chosen answers, on one batch of cases."""
    try:
        answers = answers_of(model, processor, cases, max_new_tokens=settings.max_new_tokens)
        logps = chosen_logps(model, processor, cases, max_length=settings.max_length).tolist()
    except torch.OutOfMemoryError:
        raise MfpoError(f"no GPU memory for {len(cases)} records at a time; give a smaller batch_size") from None
    return [Asked(answer, logp) for answer, logp in zip(answers, logps, strict=True)]


@torch.inference_mode()
def answers_of(model: Any, processor: Any, cases: Sequence[Case], *, max_new_tokens: int) -> list[str]:
    """The model's greedy answer to each case."""
    questions: list[Any] = [{"text": answer_text(case.prompt)} for case in cases]
    texts = greedy(model, processor, questions, [case.image for case in cases], max_new_tokens)
    return [text.strip() for text in texts]


@torch.inference_mode()
def chosen_logps(model: Any, processor: Any, cases: Sequence[Case], *, max_length: int) -> Tensor:
    """log p(y_w | m, t) of each case, in nats, (cases,)."""
    rows = [encode(processor, [case.image], case.prompt, [case.chosen], max_length=max_length) for case in cases]
    return sequence_logps(model, collate(rows, pad_id(processor)))


def _panels(rows: Sequence[Distortion]) -> list[Panels]:
    kinds = (
        ("same", "Answers that stay the same", "same answers, %", (0.0, 103.0), _SAME),
        ("drop", "Drop of log p(y_w)", "drop, nats", None, _DROP),
    )
    inpainted = [row for row in rows if row.step is None]
    panels = []
    for key, title, y_label, limits, note in kinds:
        lines = {where: lines_by_model([row for row in rows if row.where == where], "step", key) for where in WHERE}
        limits = limits or limits_of(line for part in lines.values() for line in part.values())
        drawn = {
            WHERE[where]: plot(
                part,
                x_label="noise step",
                y_label=y_label,
                label=f"{title} by noise step, {WHERE[where]}, for {', '.join(part)}; results.json has the figures",
                limits=limits,
                reference=0.0 if key == "drop" else None,
            )
            for where, part in lines.items()
        }
        without = ", ".join(f"{row.model} {getattr(row, key).value:.1f}" for row in inpainted)
        note += f" With the key regions inpainted, so that none of them can be seen: {without}."
        panels.append(Panels(title, note, drawn))
    return panels
