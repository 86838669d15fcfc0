"""Where a model looks as it names an object: attention on the image tokens inside the object's mask and elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageColor, ImageFilter
from torch import Tensor

from mfpo.errors import MfpoError, RecordError, SettingError
from mfpo.evaluate.figures import Figure, Tally, figure_of, mean
from mfpo.folders import versions, whole_folder, write_json
from mfpo.logprobs.conversation import render
from mfpo.logprobs.sequences import Encoded, encode
from mfpo.masks import Mask
from mfpo.models import load_model, load_processor
from mfpo.probe.cases import Case, Cases, check_limit, progress, read_cases
from mfpo.probe.page import Line, limits_of, plot, write_page
from mfpo.records import answer_text
from mfpo.report.palette import BLUE, ORANGE
from mfpo.report.samples import evenly, picture
from mfpo.report.sections import Panels
from mfpo.report.texts import keyword_spans

At = Literal["word", "before"]
# Pixels of a side of a drawing, at least.
_DRAWN_SIDE = 336


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    at: At = "word"
    limit: int | None = None
    drawn: int = 6
    max_length: int = 2048

    def __post_init__(self) -> None:
        check_limit(self.limit)
        if self.at not in get_args(At):
            raise SettingError(f"at is {self.at!r}, but must be one of {', '.join(get_args(At))}")
        if self.drawn < 0 or self.max_length < 1:
            raise SettingError("drawn must be 0 or more, max_length 1 or more")


@dataclass(frozen=True)
class Word:
    """A keyword in the chosen answer: its places in the sequence (prompt and answer), and its mask on the grid.

    `cover`, (side, side), is the share of each image token's patch that the mask covers.
    """

    text: str
    places: list[int]
    cover: Tensor


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


class UnknownGrid(MfpoError):
    """Where a model's image tokens are in the image is not known."""


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
        results: dict[str, Any] = {"settings": asdict(settings), "data": str(data), "set_aside": cases.set_aside}
        results |= {"figures": [asdict(row) for row in rows], "versions": versions()}
        write_json(folder / "results.json", results)
        lead = {f"{len(cases.rows)} records:": "what the words for an object attend to in the image"}
        write_page(folder / "report.html", "Attention on the image", lead, _panels(rows, drawings), settings)
    return Attentions(rows, cases)


@dataclass(frozen=True)
class Looked:
    """The figures of a model by layer, and for records that are drawn the pictures of their first word, by title."""

    rows: list[Attention]
    drawings: dict[str, "Drawing"]


@dataclass(frozen=True)
class Drawing:
    """What a model sees with the outline of the word's mask, alone and under the word's attention."""

    model: str
    answer: str
    image: Image.Image
    heat: Image.Image


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


def check_grid(name: str, processor: Any) -> None:
    """Raises UnknownGrid when a model's processor does not make a square of CLIP patches of each image."""
    if type(processor).__name__ != "LlavaProcessor" or processor.vision_feature_select_strategy != "default":
        raise _no_grid(name, type(processor).__name__)


def check_kind(name: str, config: Any) -> None:
    """Raises UnknownGrid when a model is no LLaVA with a CLIP tower, whose image tokens are its patches row by row."""
    tower = getattr(config, "vision_config", None)
    if config.model_type != "llava" or getattr(tower, "model_type", None) != "clip_vision_model":
        raise _no_grid(name, f"a {config.model_type} model")


def _no_grid(name: str, what: str) -> UnknownGrid:
    return UnknownGrid(
        f"{name}: the grid of its image tokens is not known ({what}); `probe attention` takes models of LLaVA-1.5's "
        "kind: llava with a CLIP tower, as llava-hf/llava-1.5-7b-hf and the picture book's"
    )


def find_words(processor: Any, case: Case, *, at: At, max_length: int) -> tuple[Encoded, list[Word]]:
    """The case as one sequence, and the keywords that have a mask and are in the chosen answer, in its order.

    A word has the places of all tokens of all its mentions; `before` are the places that predict these. Raises
    RecordError when there is no such word in what the model sees, or the answer is cut.
    """
    encoded = encode(processor, [case.image], case.prompt, [case.chosen], max_length=max_length)
    if encoded.cut[0]:
        raise RecordError(f"prompt and answer have more than max_length={max_length} tokens")
    prompt_text, (text,) = render(processor, case.prompt, [case.chosen], images=1)
    tokens = token_spans(processor.tokenizer, prompt_text, text, encoded.answers[0].tolist())
    first = len(encoded.prompt_ids) - (at == "before")
    places: dict[str, list[int]] = {}
    for span in keyword_spans(text, dict.fromkeys(case.masks, "")):
        own = [first + n for n, (start, end) in enumerate(tokens) if start < span.end and span.start < end]
        places.setdefault(span.title, []).extend(own)
    words = [Word(word, own, on_grid(processor, case.masks[word])) for word, own in places.items()]
    words = [word for word in words if word.places and word.cover.sum() > 0]
    if not words:
        raise RecordError("no keyword with a region is both in the chosen answer and in the part of the image seen")
    return encoded, words


def token_spans(tokenizer: Any, prompt_text: str, text: str, ids: list[int]) -> list[tuple[int, int]]:
    """The characters of an answer's `text`, from start to end, that each of its tokens `ids` stands for."""
    if not tokenizer.is_fast:
        raise MfpoError("the model's tokenizer does not say which characters its tokens stand for; give a fast one")
    # As `encode` does: the answer's tokens as they follow the prompt, or alone.
    for before in (prompt_text, ""):
        encoded = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True)
        if encoded["input_ids"][-len(ids) :] == ids:
            return [(start - len(before), end - len(before)) for start, end in encoded["offset_mapping"][-len(ids) :]]
    raise RecordError("the tokens of the chosen answer cannot be found in its text")


def as_seen(processor: Any, image: Image.Image) -> Tensor:
    """The image as the vision tower gets it, resized and cropped, but with colours from 0 to 1, (3, side, side)."""
    made = processor.image_processor(images=image, image_mean=[0.0] * 3, image_std=[1.0] * 3, return_tensors="pt")
    return made["pixel_values"][0].clamp(0, 1)


def on_grid(processor: Any, mask: Mask) -> Tensor:
    """The share of each image token's patch that `mask`, (height, width), covers, (side, side).

    The mask goes the way of its image, through the model's own resizing and cropping.
    """
    seen = as_seen(processor, Image.fromarray(mask * np.uint8(255)).convert("RGB"))
    return F.avg_pool2d(seen[:1], processor.patch_size)[0]


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
    area, one = torch.full_like(inside, cover.double().mean().item()), torch.ones_like(inside)
    return torch.stack([inside, elsewhere, inside / (inside + elsewhere), area, one], dim=1).numpy()


def figures(name: str, layer: int, sums: Mapping[str, NDArray[np.float64]]) -> Attention:
    """The figures of a layer from each record's sums, (5,); the records are what the bootstrap draws."""

    def ratio(part: int, whole: int) -> Figure:
        return figure_of(Tally({id: (float(by[part]), float(by[whole])) for id, by in sums.items()}, mean))

    return Attention(name, layer, inside=ratio(0, 4), elsewhere=ratio(1, 4), preference=ratio(2, 3))


def draw(name: str, processor: Any, case: Case, word: Word, heat: Tensor) -> Drawing:
    """What the model sees; `heat`, (side, side), is drawn relative to its greatest value."""
    mask = Image.fromarray(case.masks[word.text] * np.uint8(255)).convert("RGB")
    pixels, covered = as_seen(processor, case.image), as_seen(processor, mask)[0] > 0.5
    times = max(1, -(-_DRAWN_SIDE // pixels.shape[-1]))
    size = (pixels.shape[2] * times, pixels.shape[1] * times)
    image = Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).resize(size, Image.Resampling.NEAREST)
    alpha = Image.fromarray((heat / heat.max() * 230).byte().numpy()).resize(size, Image.Resampling.NEAREST)
    heated = image.convert("L").convert("RGB")
    heated.paste(ImageColor.getrgb(ORANGE), mask=alpha)
    inside = Image.fromarray(covered.byte().numpy() * np.uint8(255)).resize(size, Image.Resampling.NEAREST)
    outline = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(5)), inside)
    for drawn in (image, heated):
        drawn.paste(ImageColor.getrgb(BLUE), mask=outline)
    return Drawing(name, answer_text(case.chosen), image, heated)


def _panels(rows: Sequence[Attention], drawings: Mapping[str, Sequence[Drawing]]) -> list[Panels]:
    masses = {
        title: _plot(rows, key, title, "attention, of 1")
        for key, title in (("inside", "inside the object's mask"), ("elsewhere", "elsewhere in the image"))
    }
    title = "attention on the image inside the mask, relative to its area"
    preference = _plot(rows, "preference", title, "times the area's share", reference=1.0)
    panels = [
        Panels("Attention mass", "Mean over heads and over the tokens of a word, with 95 % intervals.", masses),
        Panels("Preference for the object", "1: the mask is looked at no more than the rest.", {title: preference}),
    ]
    if drawings:
        note = (
            "Mean over layers and heads, in each picture relative to the strongest token. The outline is the object's "
            "mask. Records at even distances, not picked; of each the first word."
        )
        panels.append(Panels("Where the words look", note, {title: _figures(of) for title, of in drawings.items()}))
    return panels


def _plot(rows: Sequence[Attention], key: str, title: str, y_label: str, *, reference: float | None = None) -> Markup:
    lines = {}
    for name in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == name]
        of: list[Figure] = [getattr(row, key) for row in own]
        lines[name] = Line(
            x=[row.layer for row in own], y=[f.value for f in of], low=[f.low for f in of], high=[f.high for f in of]
        )
    return plot(
        lines,
        x_label="layer",
        y_label=y_label,
        label=f"{title}, by layer, for {', '.join(lines)}; results.json has the figures",
        limits=limits_of(list(lines.values())),
        reference=reference,
        wide=reference is not None,
    )


def _figures(drawings: Sequence[Drawing]) -> Markup:
    """The image, the attention of each model on it, and the answer."""
    shown = [("image", drawings[0].image), *((drawing.model, drawing.heat) for drawing in drawings)]
    pictures = [(name, picture(image)) for name, image in shown]
    views = Markup("").join(
        Markup('<figure><img src="{}" width="{}" height="{}" alt="{}"><figcaption>{}</figcaption></figure>').format(
            made.uri, made.width, made.height, f"{name}, with the outline of the object", name
        )
        for name, made in pictures
    )
    return Markup('<div class="views">{}</div><p class="note">{}</p>').format(views, drawings[0].answer)
