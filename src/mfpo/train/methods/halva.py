"""Data-augmented phrase-level alignment (HALVA)."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Annotated

from mfpo.settings import about
from mfpo.train.objectives import Answer, Answers, Losses, divergence, objective


@objective("halva", terms=("text", "kl"))
def halva(
    policy: Answers,
    reference: Answers,
    *,
    kl_weight: Annotated[float, about("weight of the divergence from the reference", least=0)] = 0.4,
) -> Losses:
    """Phrase-level alignment (HALVA, Sarkar et al. 2024), each term (batch,).

    text: softplus(log p(phrase of y_l) - log p(phrase of y_w)), the mean over the phrase pairs of the batch, without
    a reference. kl: of the reference to the policy on y_w, summed over its tokens. The authors take other answers for
    the latter where they have them, and their mean counts the padding of short rows of phrases as pairs.
    """
    import torch
    import torch.nn.functional as F

    chosen, rejected = policy.chosen.logps(), policy.rejected.logps()
    losses, counts = [], []
    for row, (chosen_ids, rejected_ids) in enumerate(_rows(policy.chosen, policy.rejected)):
        pairs = phrase_pairs(chosen_ids, rejected_ids)
        terms = [F.softplus(rejected[row, span_l].sum() - chosen[row, span_w].sum()) for span_w, span_l in pairs]
        losses.append(torch.stack(terms).sum() if terms else chosen[row].sum() * 0.0)
        counts.append(len(pairs))
    text = torch.stack(losses) * len(losses) / max(sum(counts), 1)
    return {"text": text, "kl": kl_weight * divergence(policy.chosen, reference.chosen)}


def _rows(*answers: Answer) -> list[tuple[list[int], ...]]:
    """The token ids of each record's answers."""
    ids = [[row[mask].tolist() for row, mask in zip(answer.ids, answer.mask, strict=True)] for answer in answers]
    return list(zip(*ids, strict=True))


def phrase_pairs(chosen: list[int], rejected: list[int]) -> list[tuple[slice, slice]]:
    """The places where y_l replaces tokens of y_w by others: their spans in both.

    >>> phrase_pairs([1, 2, 3, 4], [1, 7, 8, 3, 4])
    [(slice(1, 2, None), slice(1, 3, None))]
    """
    changes = SequenceMatcher(None, chosen, rejected, autojunk=False).get_opcodes()
    return [(slice(w0, w1), slice(l0, l1)) for kind, w0, w1, l0, l1 in changes if kind == "replace"]
