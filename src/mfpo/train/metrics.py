"""Metrics of preference training, with TRL's names where they exist."""

from torch import Tensor

from mfpo.train.objectives import LogRatios, Losses

# What a cell is called in the metrics, where it had another name before there were cells.
_SHOWN = {"rejected_image": "image_rejected"}

# Below it, the mean margin of a window is rounding, and a ratio to it means nothing.
_ROUNDING = 1e-5


def metrics(logps: dict[str, Tensor], ratios: LogRatios, losses: Losses, *, beta: float) -> dict[str, Tensor]:
    """The metrics of a batch, each (batch,), detached: a reward and a log p for each cell that is there, and margins.

    `logps` (batch,) are the policy's by cell. A method without y_l has no text margin, one without m' no image margin.
    """
    rewards = {name: beta * ratio.detach() for name, ratio in ratios.there().items()}
    values = {f"loss/{name}": loss.detach() for name, loss in losses.items()}
    values |= {f"rewards/{_SHOWN.get(name, name)}": reward for name, reward in rewards.items()}
    chosen = rewards["chosen"]
    for cell, prefix in {"rejected": "", "rejected_image": "image_"}.items():
        if cell in rewards:
            values[f"rewards/{prefix}margins"] = chosen - rewards[cell]
            values[f"rewards/{prefix}accuracies"] = (chosen > rewards[cell]).float()
    return values | {f"logps/{_SHOWN.get(name, name)}": logp for name, logp in logps.items() if name in rewards}


def count_tokens(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """How many tokens of a batch of `logprobs.collate` go through the model, and with a row for each answer would."""
    is_token, numbers = batch["documents"] >= 0, batch["answer_numbers"]
    prompts = ((numbers == 0) & is_token).sum(dim=1)
    repeated = prompts * (numbers.amax(dim=1) - 1)
    return {"tokens": is_token.sum(), "tokens_unshared": is_token.sum() + repeated.sum()}


def window_means(sums: dict[str, float], *, seconds: float) -> dict[str, float]:
    """The metrics of a logging window from their sums over its records."""
    sums = dict(sums)
    tokens, unshared = (sums.pop(name) for name in ("tokens", "tokens_unshared"))
    return record_means(sums) | {"tokens/per_second": tokens / seconds, "tokens/saved": 1 - tokens / unshared}


def record_means(sums: dict[str, float]) -> dict[str, float]:
    """The means over the records, whose number is `records`.

    `rewards/balance` is the image margin over the text margin, 1 where both modalities pull alike; there is none while
    the text margin is rounding.
    """
    means = {name: value / sums["records"] for name, value in sums.items() if name != "records"}
    if "rewards/image_margins" in means and abs(means.get("rewards/margins", 0.0)) > _ROUNDING:
        means["rewards/balance"] = means["rewards/image_margins"] / means["rewards/margins"]
    return means
