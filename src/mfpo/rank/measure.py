"""The entropy of each record by the model: of its chosen answer, or of the answers that the model samples."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch

from mfpo.dataset import column
from mfpo.logprobs.cells import TEXT
from mfpo.logprobs.pairs import Pairs
from mfpo.logprobs.sequences import token_logps
from mfpo.models import end_ids, plain_generation
from mfpo.rank.entropy import predictive_entropy, token_entropy
from mfpo.rank.semantic_entropy import (
    Entails,
    cluster_by_entailment,
    cluster_by_objects,
    load_entailment,
    mean_logps,
    sample_answers,
    semantic_entropy,
)
from mfpo.rank.settings import RankSettings
from mfpo.records import answer_text

# Records -> batch by batch, their entropies and how many answers were cut.
Measure = Callable[[datasets.Dataset], Iterator[tuple[list[float], int]]]


def open_measure(model: Any, processor: Any, settings: RankSettings, nli_model: Path | None) -> Measure:
    """The measure that the setting `entropy` names. Raises MfpoError when `nli_model` cannot be loaded."""
    if settings.entropy == "semantic":
        entails = load_entailment(nli_model) if nli_model else None
        return partial(_of_samples, model, processor, settings, entails)
    return partial(_of_chosen, model, processor, settings)


def _of_chosen(
    model: Any, processor: Any, settings: RankSettings, records: datasets.Dataset
) -> Iterator[tuple[list[float], int]]:
    """The token or predictive entropy of the chosen answers."""
    pairs = Pairs(records, processor, cells=TEXT, max_length=settings.max_length)
    for start in range(0, len(pairs), settings.batch_size):
        stop = min(start + settings.batch_size, len(pairs))
        chosen = [pairs[row].only(("chosen",)) for row in range(start, stop)]
        batch = pairs.collate(chosen)
        batch.pop("rows")
        with torch.inference_mode():
            if settings.entropy == "token":
                entropies = token_entropy(token_logps(model, batch))
            else:
                entropies = predictive_entropy(model, batch)
        yield entropies.tolist(), sum(pair.prompts[0].cut != (0,) for pair in chosen)


def _of_samples(
    model: Any, processor: Any, settings: RankSettings, entails: Entails | None, records: datasets.Dataset
) -> Iterator[tuple[list[float], int]]:
    """The semantic entropy of the prompts; one at a time, as a batch would share its random numbers."""
    pairs = Pairs(records, processor, cells=TEXT, max_length=settings.max_length)
    ends = end_ids(model, processor.tokenizer)
    for row, question in enumerate(column(records, "prompt")):
        prompt = pairs[row].prompts[0]
        with torch.inference_mode(), plain_generation(model, processor.tokenizer):
            if mean_logps(model, prompt, pairs.pad_id).isnan().any():  # nothing can be drawn from that
                yield [math.nan], 0
                continue
            sampled = sample_answers(
                model,
                prompt,
                id=pairs.ids[row],
                samples=settings.samples,
                temperature=settings.temperature,
                max_new_tokens=settings.max_new_tokens,
                pad_id=pairs.pad_id,
                end_ids=ends,
            )
            logps = mean_logps(model, sampled, pairs.pad_id)
        texts = processor.tokenizer.batch_decode(sampled.answers, skip_special_tokens=True)
        if entails is None:
            clusters = cluster_by_objects(texts)
        else:
            clusters = cluster_by_entailment([f"{answer_text(question)} {text.strip()}" for text in texts], entails)
        yield [semantic_entropy(clusters, logps)], sum(sampled.cut)
