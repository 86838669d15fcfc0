"""How the shipped weights were made, in LLaVA's stages: the vision tower first, then projector and language model.

The tower learns what is where as a classifier of patches, so that what the model later says wrongly is a matter of
habit, not of sight. The language model then learns captions, some written from habit, and existence questions.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, get_cosine_schedule_with_warmup

from mfpo.build.noise import add_noise
from mfpo.folders import whole_folder, write_json
from mfpo.models import load_model, save_as_on_hub
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.books import BOOKS
from mfpo.picturebook.drawings import KINDS
from mfpo.picturebook.model import PATCH, make_model, make_processor
from mfpo.picturebook.pen import RGB
from mfpo.picturebook.pretrain_settings import PretrainSettings
from mfpo.picturebook.scenes import SIDE, Scene, draw_scene
from mfpo.picturebook.texts import CAPTION_PROMPTS, caption, existence_questions

logger = logging.getLogger(__name__)

# The step of the noise on `noised` images: that of the paper's rejected ones.
_NOISE_STEP = 500


def pretrain(out: Path, settings: PretrainSettings, book: str = "picturebook") -> None:
    """Train the LLaVA of a book from nothing and save it to `out` in float16.

    `out` also gets `pretraining.json`, the losses by step.
    """
    with whole_folder(out, {"command": "picturebook pretrain", "book": book, "settings": vars(settings)}) as folder:
        torch.manual_seed(settings.seed)
        scenes = [BOOKS[book].make_pretraining_scene(seed) for seed in range(settings.scenes)]
        drawn = [draw_scene(scene) for scene in track(scenes, "drawing scenes")]
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image, _ in drawn]))
        labels = torch.from_numpy(np.stack([patch_labels(s, m) for s, (_, m) in zip(scenes, drawn, strict=True)]))
        del drawn
        processor = make_processor(_corpus(scenes, settings))
        model = make_model(processor)
        log = {"tower": _train_tower(model, processor, pixels, labels, settings) if settings.tower_steps else []}
        if not settings.tower_steps:
            model.model.vision_tower.load_state_dict(load_model(WEIGHTS).model.vision_tower.state_dict())
        model.model.vision_tower.requires_grad_(False)
        log["language"] = _train_language(model, processor, pixels, scenes, settings)
        save_as_on_hub(model.half(), folder)
        processor.save_pretrained(folder)
        write_json(folder / "pretraining.json", log)


def patch_labels(scene: Scene, masks: dict[str, np.ndarray]) -> np.ndarray:
    """For each patch its kind and its colour, (64, 2) int64, counted from 1; 0 where no object covers a fifth."""
    labels = np.zeros((2, SIDE // PATCH, SIDE // PATCH), dtype=np.int64)
    best = np.full(labels.shape[1:], 0.2)
    for thing in scene.things:
        cover = masks[thing.kind].reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).mean((1, 3))
        covered = cover > best
        labels[0][covered] = 1 + list(KINDS).index(thing.kind)
        labels[1][covered] = 1 + list(RGB).index(thing.colour)
        best = np.maximum(best, cover)
    return labels.reshape(2, -1).T


def _train_tower(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pixels: Tensor,
    labels: Tensor,
    settings: PretrainSettings,
) -> list[dict[str, float]]:
    tower = model.model.vision_tower
    heads = nn.Linear(tower.config.hidden_size, 1 + len(KINDS) + 1 + len(RGB))
    rng = np.random.default_rng([settings.seed, 1])
    parameters = [*tower.parameters(), *heads.parameters()]
    log = []
    for step, update in _steps(parameters, settings.tower_rate, settings.tower_steps, "vision tower"):
        chosen = torch.from_numpy(rng.integers(len(pixels), size=settings.batch_size))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            features = tower(_normalise(pixels[chosen], processor)).last_hidden_state[:, 1:]
            kind_logits, colour_logits = heads(features).float().split([1 + len(KINDS), 1 + len(RGB)], dim=-1)
        kind, colour = labels[chosen].unbind(-1)
        loss = F.cross_entropy(kind_logits.flatten(0, 1), kind.flatten())
        loss = loss + F.cross_entropy(colour_logits.flatten(0, 1), colour.flatten())
        update(loss)
        if step % 50 == 0 or step == settings.tower_steps:
            right = (kind_logits.argmax(-1) == kind)[kind > 0].float().mean()
            log.append({"step": step, "loss": loss.item(), "foreground_accuracy": right.item()})
            logger.info("vision tower: %s", log[-1])
    return log


def _train_language(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    pixels: Tensor,
    scenes: list[Scene],
    settings: PretrainSettings,
) -> list[dict[str, float]]:
    rng = np.random.default_rng([settings.seed, 2])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    log = []
    for step, update in _steps(parameters, settings.language_rate, settings.language_steps, "language model"):
        chosen = rng.integers(len(scenes), size=settings.batch_size)
        half = settings.batch_size // 2
        turns = [_caption_turn(scenes[i], rng, settings.prior) for i in chosen[:half]]
        turns += [_question_turns(scenes[i], rng) for i in chosen[half:]]
        batch = _tokenise(turns, processor)
        images = _normalise(_noised(pixels[chosen], half, rng, settings.noised), processor)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.bf16):
            hidden = model.model(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                pixel_values=images,
            ).last_hidden_state
            logits = model.lm_head(hidden[:, :-1][batch["answered"][:, 1:]]).float()
        token_loss = F.cross_entropy(logits, batch["input_ids"][:, 1:][batch["answered"][:, 1:]], reduction="none")
        # A mean by row: as tokens of one mean, the short answers to questions would learn nothing.
        rows = batch["answered"][:, 1:].nonzero()[:, 0]
        per_row = torch.zeros(len(chosen)).index_add(0, rows, token_loss) / torch.bincount(rows)
        update(per_row.mean())
        if step % 50 == 0 or step == settings.language_steps:
            captions, questions = per_row[:half].mean().item(), per_row[half:].mean().item()
            log.append({"step": step, "caption_loss": captions, "question_loss": questions})
            logger.info("language model: %s", log[-1])
    return log


def _steps(parameters: list[nn.Parameter], rate: float, steps: int, title: str) -> Iterator[tuple[int, Any]]:
    """Count steps from 1, each with a function that takes the loss and updates `parameters`."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)

    def update(loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()

    for step in track(range(1, steps + 1), title):
        yield step, update


def _normalise(pixels: Tensor, processor: LlavaProcessor) -> Tensor:
    """(n, side, side, 3) uint8 -> (n, 3, side, side), as the processor does it for pictures of this size."""
    mean, std = torch.tensor(processor.image_processor.image_mean), torch.tensor(processor.image_processor.image_std)
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)


def _noised(pixels: Tensor, captions: int, rng: np.random.Generator, share: float) -> Tensor:
    """`pixels`, (n, side, side, 3) uint8, with the paper's noise all over a share of the first `captions` images."""
    pixels = pixels.clone()
    for row in np.flatnonzero(rng.random(captions) < share) if share else ():
        everywhere = np.ones((SIDE, SIDE), dtype=bool)
        noised = add_noise(pixels[row].numpy(), everywhere, step=_NOISE_STEP, schedule="sigmoid", rng=rng)
        pixels[row] = torch.from_numpy(noised)
    return pixels


def _caption_turn(scene: Scene, rng: np.random.Generator, prior: float) -> list[tuple[str, str]]:
    return [(CAPTION_PROMPTS[int(rng.integers(len(CAPTION_PROMPTS)))], caption(scene, rng, prior=prior))]


def _question_turns(scene: Scene, rng: np.random.Generator) -> list[tuple[str, str]]:
    return [(question.text, f"{question.label.capitalize()}.") for question in existence_questions(scene, rng)]


def _pieces(turns: list[tuple[str, str]]) -> list[tuple[str, bool]]:
    """The conversation as LLaVA's template writes it, cut into what is given and what is answered."""
    pieces = []
    for number, (question, answer) in enumerate(turns):
        image = "<image>\n" if number == 0 else ""
        pieces += [(f"USER: {image}{question} ASSISTANT:", False), (f" {answer}</s>", True)]
    return pieces


def _corpus(scenes: list[Scene], settings: PretrainSettings) -> Iterator[str]:
    rng = np.random.default_rng([settings.seed, 3])
    for scene in scenes[:4_000]:
        for turns in (_caption_turn(scene, rng, settings.prior), _question_turns(scene, rng)):
            yield "".join(text for text, _ in _pieces(turns))


def _tokenise(conversations: list[list[tuple[str, str]]], processor: LlavaProcessor) -> dict[str, Tensor]:
    """Right-padded `input_ids` with the image tokens in place, `attention_mask`, and `answered`, all (rows, length)."""
    tokenizer = processor.tokenizer
    patches = "<image>" * (SIDE // PATCH) ** 2
    ids, answered = [], []
    for turns in conversations:
        texts, is_answer = zip(*_pieces(turns), strict=True)
        tokens = tokenizer([text.replace("<image>", patches) for text in texts]).input_ids
        ids.append(torch.tensor([token for piece in tokens for token in piece]))
        answered.append(torch.tensor([mark for mark, piece in zip(is_answer, tokens, strict=True) for _ in piece]))
    input_ids = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != tokenizer.pad_token_id).long(),
        "answered": nn.utils.rnn.pad_sequence(answered, batch_first=True),
    }
