"""Hallucination-augmented contrastive learning (HACL)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mfpo.errors import MfpoError
from mfpo.settings import about
from mfpo.train.objectives import Losses, objective

if TYPE_CHECKING:
    from torch import Tensor

    from mfpo.logprobs.pairs import Pair, Pairs
    from mfpo.logprobs.sequences import Encoded


@dataclass(frozen=True)
class Features:
    """The last state, at the end token, of the images alone, of y_w alone and of y_l alone, each (batch, width)."""

    images: Tensor
    chosen: Tensor
    rejected: Tensor


class Alone:
    """Brings `features`: the images, and each answer, go through `model` alone, without the prompt's text.

    Raises MfpoError for a model that does not support this.
    """

    def __init__(self, model: Any, pairs: Pairs) -> None:
        from mfpo.logprobs.prefix import shares_prefix

        self._image_id = getattr(model.config, "image_token_id", None)
        self._end_id, self._pad_id = pairs.end_id, pairs.pad_id
        if not shares_prefix(model) or self._image_id is None:
            raise MfpoError(
                f"method hacl reads hidden states that a {model.config.model_type!r} model does not give here; "
                "train one whose prompts can be shared, such as LLaVA or Qwen2.5-VL"
            )

    def collate(self, pairs: Sequence[Pair]) -> list[dict[str, Tensor]]:
        """Two batches: the images without a text, and y_w and then y_l without the rest."""
        import torch

        from mfpo.logprobs.sequences import Encoded, collate

        end = torch.tensor([self._end_id])
        prompts = [pair.prompts[0] for pair in pairs]
        images = [self._images(prompt, end) for prompt in prompts]
        texts = [Encoded(prompt.answers[number], (end,), {}, cut=(0,)) for number in (0, 1) for prompt in prompts]
        return [collate(rows, self._pad_id) for rows in (images, texts)]

    def _images(self, prompt: Encoded, end: Tensor) -> Encoded:
        """The images' tokens and an end token, whose state predicts the answer: another end token."""
        import torch
        from torch.nn.functional import pad

        from mfpo.logprobs.prefix import TOKEN_TYPES
        from mfpo.logprobs.sequences import Encoded

        is_image = prompt.prompt_ids == self._image_id
        features = {
            name: pad(value[:, is_image], (0, len(end))) if name in TOKEN_TYPES else value
            for name, value in prompt.features.items()
        }
        return Encoded(torch.cat([prompt.prompt_ids[is_image], end]), (end,), features, cut=(0,))

    def features(self, model: Any, batches: list[dict[str, Tensor]]) -> Features:
        """The policy's last states at the end of the images alone and of each answer alone, in float32."""
        from mfpo.logprobs.sequences import answer_scores

        images, texts = (answer_scores(model, batch, lambda project, states, ids: states).float() for batch in batches)
        return Features(images, *texts.chunk(2))


@objective("hacl", terms=("lm", "contrast"), prepare=Alone)
def hacl(
    chosen_nll: Tensor,
    features: Features,
    *,
    temperature: Annotated[float, about("temperature of the contrast", above=0)] = 0.07,
    contrast_weight: Annotated[float, about("weight of the contrast", least=0)] = 1.0,
    all_hallucinated: Annotated[bool, about("contrast with all y_l of the batch, as released")] = False,
) -> Losses:
    """A caption loss and a contrast of representations with hallucinated captions as hard negatives (Jiang et al.
    2024, equations 2 to 4), each (batch,).

    An image must be nearer to its own caption y_w than to the other captions of the batch and to its hallucinated one,
    y_l, or with `all_hallucinated`, as released, to those of the whole batch; a caption nearer to its image than to
    other images. The states are compared as they are: the released code has two projection layers, which it leaves at
    their random start. The paper's queue of captions from earlier batches is left out.
    """
    import torch
    import torch.nn.functional as F

    images, chosen, rejected = (F.normalize(part, dim=-1) for part in vars(features).values())
    label = torch.arange(len(images), device=images.device)
    hallucinated = images @ rejected.T if all_hallucinated else (images * rejected).sum(-1, keepdim=True)
    to_texts = torch.cat([images @ chosen.T, hallucinated], dim=1) / temperature
    to_images = chosen @ images.T / temperature
    contrast = F.cross_entropy(to_texts, label, reduction="none") + F.cross_entropy(to_images, label, reduction="none")
    return {"lm": chosen_nll, "contrast": contrast_weight * contrast / 2}
