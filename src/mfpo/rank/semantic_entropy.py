"""Semantic entropy (Farquhar et al., Nature 2024): how far apart in meaning are the answers that a model samples?

Samples are grouped by meaning: two answers mean the same when each entails the other by a model of natural-language
inference, or, without one, when they name the same objects.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from mfpo.errors import MfpoError, first_line, warn_once
from mfpo.logprobs.prefix import shares_prefix
from mfpo.logprobs.sequences import Encoded, collate, token_logps
from mfpo.models import device, load_weights, quiet
from mfpo.objects import mentions

# (premise, hypothesis) pairs -> for each, whether the premise entails the hypothesis.
Entails = Callable[[Sequence[tuple[str, str]]], list[bool]]


def semantic_entropy(clusters: Sequence[int], logps: Tensor) -> float:
    """- sum over meanings C of P(C) log P(C), in nats; P(C) is the share of its samples in exp(logps).

    `clusters` gives each sample's meaning, `logps` (samples,) its log p a token. This is the paper's Rao-Blackwellised
    estimate with length-normalised probabilities.

    >>> round(semantic_entropy([0, 1, 0], torch.tensor([0.25, 0.5, 0.25]).log()), 4)  # log 2
    0.6931
    """
    shares = torch.zeros(max(clusters) + 1, dtype=torch.float64)
    shares.index_add_(0, torch.tensor(clusters), logps.double().softmax(dim=0).cpu())
    # Rounding must not set records apart that have one meaning each.
    return float(torch.special.entr(shares / shares.sum()).sum())


def sample_answers(
    model: Any,
    prompt: Encoded,
    *,
    id: str,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    pad_id: int,
    end_ids: list[int],
) -> Encoded:
    """The prompt with answers drawn from the model, each up to one of `end_ids`; an answer without one counts as cut.

    Call it under `plain_generation`, or the model's own generation settings hold too. The random numbers start from
    the record's `id`, so that other records have no part in them.
    """
    features = {
        name: torch.cat([value.to(model.device, model.dtype if value.is_floating_point() else None)] * samples)
        for name, value in prompt.features.items()
    }
    ids = prompt.prompt_ids.to(model.device).repeat(samples, 1)
    # A text has none of these, and the model could not read an answer that has.
    kinds = (getattr(model.config, f"{kind}_token_id", None) for kind in ("image", "video", "audio"))
    shown = [placeholder for placeholder in kinds if placeholder is not None]
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big"))
        # Top-k and nucleus as in the paper.
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **features,
            do_sample=True,
            temperature=temperature,
            top_k=50,
            top_p=0.9,
            max_new_tokens=max_new_tokens,
            suppress_tokens=shown or None,
            pad_token_id=pad_id,
            eos_token_id=end_ids,
        )
    drawn = output[:, ids.shape[1] :].cpu()
    is_end = torch.isin(drawn, torch.tensor(end_ids))
    # Behind its first end token, an answer is padding.
    lengths = ((is_end.cumsum(dim=1) - is_end.long()) == 0).sum(dim=1)
    answers = tuple(answer[:length] for answer, length in zip(drawn, lengths.tolist(), strict=True))
    return replace(prompt, answers=answers, cut=tuple((~is_end.any(dim=1)).long().tolist()))


def mean_logps(model: Any, sampled: Encoded, pad_id: int) -> Tensor:
    """log p of each answer divided by its number of tokens, (answers,)."""
    means = []
    for row in [sampled] if shares_prefix(model) else sampled.split():
        batch = collate([row], pad_id)
        means.append(token_logps(model, batch).sum(dim=-1).cpu() / batch["answer_mask"].sum(dim=-1))
    return torch.cat(means)


def cluster_by_objects(texts: Sequence[str]) -> list[int]:
    """The number of each text's cluster: texts that name the same COCO objects are in one.

    >>> cluster_by_objects(["A dog and a cat.", "A tree.", "Two cats with a puppy."])
    [0, 1, 0]
    """
    sets = [frozenset(mention.category for mention in mentions(text)) for text in texts]
    known = list(dict.fromkeys(sets))
    return [known.index(objects) for objects in sets]


def cluster_by_entailment(texts: Sequence[str], entails: Entails) -> list[int]:
    """The number of each text's cluster: that of the first cluster whose first text it entails and is entailed by."""
    clusters: dict[str, int] = {}
    firsts: list[str] = []
    for text in dict.fromkeys(texts):
        there = entails([(text, first) for first in firsts])
        back = entails([(first, text) for first in firsts])
        clusters[text] = next((n for n, both in enumerate(zip(there, back, strict=True)) if all(both)), len(firsts))
        if clusters[text] == len(firsts):
            firsts.append(text)
    return [clusters[text] for text in texts]


@quiet()
def load_entailment(path: Path) -> Entails:
    """The model of natural-language inference in the folder `path`, as a function.

    Raises MfpoError when there is none in safetensors, or none of its labels is "entailment".
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise MfpoError(f"{path}: its tokenizer cannot be loaded ({first_line(error)})") from None
    model = load_weights(AutoModelForSequenceClassification, path).to(device())
    labels = {label.lower(): number for number, label in model.config.id2label.items()}
    if "entailment" not in labels:
        raise MfpoError(
            f"{path}: none of its labels ({', '.join(labels)}) is 'entailment'; give a model trained on MNLI, "
            "with the labels' names in its config.json (id2label)"
        )
    # RoBERTa counts positions from 2.
    room = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 514) - 2)

    def entails(pairs: Sequence[tuple[str, str]]) -> list[bool]:
        if not pairs:
            return []
        premises, hypotheses = (list(texts) for texts in zip(*pairs, strict=True))
        inputs = tokenizer(premises, hypotheses, truncation=True, max_length=room, padding=True, return_tensors="pt")
        if inputs["input_ids"].shape[1] == room:
            warn_once(
                f"{path}: it reads at most {room} tokens, so long pairs of answers are compared by their beginnings"
            )
        with torch.inference_mode():
            logits = model(**inputs.to(model.device)).logits
        return (logits.argmax(dim=-1) == labels["entailment"]).tolist()

    return entails
