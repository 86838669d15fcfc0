"""Where a model looks as it names an object: attention on the image tokens inside the object's mask and elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from mfpo.evaluate.figures import Figure, Tally, figure_of, mean
from mfpo.folders import whole_folder
from mfpo.logprobs.sequences import Encoded
from mfpo.models import load_model
from mfpo.probe.cases import Case, Cases, progress, read_cases
from mfpo.probe.drawings import Drawing, draw, show
from mfpo.probe.results import lines_by_model, write_results
from mfpo.probe.settings import AttentionSettings
from mfpo.probe.words import Word, check_grid, check_kind, find_words
from mfpo.processors import load_processor
from mfpo.report.page import Panels
from mfpo.report.plots import limits_of, plot
from mfpo.report.samples import evenly


@dataclass(frozen=True)
class Attention:
    """What the words of the records attend to in a layer of a model, mean over heads, tokens of a word, and words.

    `inside` and `elsewhere` are the attention mass, of 1 in all, on the image tokens inside the word's mask and on the
    other ones; `preference` is the share of the mass on the image that is inside, over the mask's share of the image's
    area: 1 where the mask is looked at no more than the rest.
    """

    model: str
    layer: int
    inside: Figure
    elsewhere: Figure
    preference: Figure


@dataclass(frozen=True)
class Attentions:
    rows: list[Attention]
    cases: Cases


def probe_attention(data: Path, models: Mapping[str, Path], out: Path, settings: AttentionSettings) -> Attentions:
    """Write results.json and report.html on `models`, by name, into the folder `out`.

    Raises MfpoError when the dataset cannot be used, and UnknownGrid for a model whose image tokens are no square grid
    that is known from its configuration.
    """
    processors = {name: load_processor(path) for name, path in models.items()}
    for name, processor in processors.items():
        check_grid(name, processor)

    def check(case: Case) -> None:
        for processor in processors.values():
            find_words(processor, case, at=settings.at, max_length=settings.max_length)

    provenance = {"command": "probe attention", "data": data, "models": models, "settings": asdict(settings)}
    with whole_folder(out, provenance) as folder:
        cases = read_cases(data, settings.limit, check)
        drawn = [cases.rows[index] for index in evenly(len(cases.rows), settings.drawn)] if settings.drawn else []
        rows: list[Attention] = []
        drawings: dict[str, list[Drawing]] = {}
        for name, path in models.items():
            model = load_model(path)
            looked = look(name, model, processors[name], cases, settings, drawn)
            rows += looked.rows
            for title, drawing in looked.drawings.items():
                drawings.setdefault(title, []).append(drawing)
            del model  # two models need not fit into memory
        question = "what the words for an object attend to in the image"
        panels = _panels(rows, drawings)
        write_results(
            folder,
            "Attention on the image",
            question,
            data=data,
            settings=settings,
            cases=cases,
            rows=rows,
            panels=panels,
        )
    return Attentions(rows, cases)


@dataclass(frozen=True)
class Looked:
    """The figures of a model by layer, and for records that are drawn the pictures of their first word, by title."""

    rows: list[Attention]
    drawings: dict[str, Drawing]


def look(
    name: str, model: Any, processor: Any, cases: Cases, settings: AttentionSettings, drawn: Sequence[int]
) -> Looked:
    """Run the model on all cases; `drawn` are the rows to draw."""
    check_kind(name, model.config)
    model.set_attn_implementation("eager")  # the only one that gives its weights
    sums: dict[str, NDArray[np.float64]] = {}
    drawings = {}
    for row in progress(cases.rows, f"watching {name}", len(cases.rows)):
        (case,) = cases.open([row])
        encoded, words = find_words(processor, case, at=settings.at, max_length=settings.max_length)
        grids = image_attention(model, encoded, words)
        sums[case.id] = np.sum([mass(grid, word.cover) for grid, word in zip(grids, words, strict=True)], axis=0)
        if row in drawn:
            drawings[f"“{words[0].text}” in {case.id}"] = draw(name, processor, case, words[0], grids[0].mean(dim=0))
    layers = range(next(iter(sums.values())).shape[0])
    return Looked([figures(name, layer + 1, {id: by[layer] for id, by in sums.items()}) for layer in layers], drawings)


@torch.inference_mode()
def image_attention(model: Any, encoded: Encoded, words: Sequence[Word]) -> list[Tensor]:
    """The attention of each word on the image tokens, mean over heads and the word's places, (layers, side, side)."""
    ids = torch.cat([encoded.prompt_ids, *encoded.answers])[None].to(model.device)
    outputs = model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=encoded.features["pixel_values"].to(model.device),
        output_attentions=True,
        logits_to_keep=1,
        use_cache=False,
    )
    layers = torch.stack([layer[0].float().mean(dim=0) for layer in outputs.attentions])
    on_image = layers[:, :, ids[0] == model.config.image_token_id].cpu()
    return [on_image[:, word.places].mean(dim=1).unflatten(1, word.cover.shape) for word in words]


def mass(grid: Tensor, cover: Tensor) -> NDArray[np.float64]:
    """What `figures` sums over words, for each layer of `grid`, (layers, side, side): (layers, 5).

    Attention inside the mask and elsewhere, the share of it that is inside, the mask's share of the area, and 1.
    """
    inside = (grid * cover).sum(dim=(1, 2)).double()
    elsewhere = (grid * (1 - cover)).sum(dim=(1, 2)).double()
    area, count = torch.full_like(inside, cover.double().mean().item()), torch.ones_like(inside)
    return torch.stack([inside, elsewhere, inside / (inside + elsewhere), area, count], dim=1).numpy()


def figures(name: str, layer: int, sums: Mapping[str, NDArray[np.float64]]) -> Attention:
    """The figures of a layer from each record's sums, (5,); the records are what the bootstrap draws."""

    def ratio(part: int, whole: int) -> Figure:
        return figure_of(Tally({id: (float(by[part]), float(by[whole])) for id, by in sums.items()}, mean))

    return Attention(name, layer, inside=ratio(0, 4), elsewhere=ratio(1, 4), preference=ratio(2, 3))


def _panels(rows: Sequence[Attention], drawings: Mapping[str, Sequence[Drawing]]) -> list[Panels]:
    masses = {
        title: _plot(rows, key, title, "attention, of 1")
        for key, title in (("inside", "inside the object's mask"), ("elsewhere", "elsewhere in the image"))
    }
    title = "attention on the image inside the mask, relative to its area"
    preference = _plot(rows, "preference", title, "times the area's share", reference=1.0)
    panels = [
        Panels("Attention mass", "Mean over heads and over the tokens of a word, with 95 % intervals.", masses),
        Panels(
            "Preference for the object", "1: the model looks at the mask no more than at the rest.", {title: preference}
        ),
    ]
    if drawings:
        note = (
            "Mean over layers and heads, in each picture relative to the strongest token. The outline is the object's "
            "mask. Records are evenly spaced, not picked by hand; each shows its first word."
        )
        panels.append(
            Panels("Where the words look", note, {title: show(of_record) for title, of_record in drawings.items()})
        )
    return panels


def _plot(rows: Sequence[Attention], key: str, title: str, y_label: str, *, reference: float | None = None) -> Markup:
    lines = lines_by_model(rows, "layer", key)
    return plot(
        lines,
        x_label="layer",
        y_label=y_label,
        label=f"{title}, by layer, for {', '.join(lines)}; results.json has the figures",
        limits=limits_of(lines.values()),
        reference=reference,
        wide=reference is not None,
    )
