"""Metrics of preference training, with TRL's names where they exist."""

from torch import Tensor

from mfpo.train.objectives import LogRatios, Losses

# Below it, the mean margin of a window is rounding, and a ratio to it means nothing.
_ROUNDING = 1e-5


def metrics(logps: Tensor, ratios: LogRatios, losses: Losses, *, beta: float) -> dict[str, Tensor]:
    """The metrics of a batch, each (batch,), detached.

    `logps` is (sequences per record, batch). A method without m' has no image metrics.
    """
    chosen = beta * ratios.chosen.detach()
    rejected = beta * ratios.rejected.detach()
    values = {f"loss/{name}": loss.detach() for name, loss in losses.items()} | {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
    }
    if ratios.rejected_image is not None:
        image_rejected = beta * ratios.rejected_image.detach()
        values |= {
            "rewards/image_rejected": image_rejected,
            "rewards/image_margins": chosen - image_rejected,
            "rewards/image_accuracies": (chosen > image_rejected).float(),
            "logps/image_rejected": logps[2],
        }
    return values


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
    if "rewards/image_margins" in means and abs(means["rewards/margins"]) > _ROUNDING:
        means["rewards/balance"] = means["rewards/image_margins"] / means["rewards/margins"]
    return means
