"""`transformers.Trainer` with a preference objective in place of its loss, and the metrics of preference training."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, Trainer

from mfpo.align.logprobs import sequence_logps
from mfpo.align.objectives import OBJECTIVES, LogRatios, Terms, total
from mfpo.align.pairs import Pairs
from mfpo.align.prefix import shares_prefix
from mfpo.align.train_settings import TrainSettings
from mfpo.errors import MfpoError


class PreferenceTrainer(Trainer):
    """Trains on batches of `Pairs.collate`; `reference` is (records, sequences per record).

    `write` gets the metrics of each logging window and the step in the stage.
    """

    def __init__(
        self,
        *,
        pairs: Pairs,
        reference: Tensor,
        settings: TrainSettings,
        write: Callable[[dict[str, float], int], None],
        model: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, data_collator=partial(pairs.collate, shared=shares_prefix(model)), **kwargs)
        # The loss is a mean over the batch; the Trainer has to divide it by the number of accumulated batches.
        self.model_accepts_loss_kwargs = False
        self.pairs = pairs
        self.reference = reference
        self.settings = settings
        self.write = write
        self.window: list[dict[str, Tensor]] = []
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(QuietBar)

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """The mean loss of a batch. Raises MfpoError with the records' ids when it is not finite."""
        rows = inputs.pop("rows")
        logps = sequence_logps(model, inputs).view(-1, len(self.pairs.names)).T
        ratios = LogRatios(*(logps - self.reference[rows.cpu()].T.to(logps.device)))
        s = self.settings
        method = OBJECTIVES[s.method]
        terms = method.terms(ratios, **{name: getattr(s, name) for name in method.options})
        losses = total(terms, text=s.text_weight, image=s.image_weight, margin=s.margin_weight)
        if not losses.isfinite().all():
            ids = [self.pairs.ids[row] for row, loss in zip(rows.tolist(), losses, strict=True) if not loss.isfinite()]
            raise MfpoError(
                f"the loss is no longer finite at record {', '.join(map(repr, ids))}, step {self.state.global_step}; "
                "lower learning_rate or look at these records"
            )
        self.window.append({"loss": losses.detach(), **metrics(logps.detach(), ratios, terms, beta=s.beta)})
        return losses.mean()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means over the records since the last call; the Trainer calls it every `logging_steps`."""
        if self.window:
            means = {name: torch.cat([part[name] for part in self.window]).mean().item() for name in self.window[0]}
            self.window.clear()
            rates = {name: logs[name] for name in ("learning_rate", "grad_norm") if name in logs}
            self.write(means | rates, self.state.global_step)
            logs = logs | means
        super().log(logs, start_time)


class QuietBar(ProgressCallback):
    """The Trainer's progress bar, without the metrics that it prints between."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


def metrics(logps: Tensor, ratios: LogRatios, terms: Terms, *, beta: float) -> dict[str, Tensor]:
    """What is worth watching, by TRL's names, each (batch,), detached.

    `logps` is (sequences per record, batch). A method without m' has no image metrics.
    """
    chosen = beta * ratios.chosen.detach()
    rejected = beta * ratios.rejected.detach()
    values = {
        "loss/text": terms.text.detach(),
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
        "logps/chosen": logps[0],
        "logps/rejected": logps[1],
    }
    if terms.image is not None:
        values["loss/image"] = terms.image.detach()
    if terms.margin is not None:
        values["loss/margin"] = terms.margin.detach()
    if ratios.rejected_image is not None:
        image_rejected = beta * ratios.rejected_image.detach()
        values |= {
            "rewards/image_rejected": image_rejected,
            "rewards/image_margins": chosen - image_rejected,
            "rewards/image_accuracies": (chosen > image_rejected).float(),
            "logps/image_rejected": logps[2],
        }
    return values
