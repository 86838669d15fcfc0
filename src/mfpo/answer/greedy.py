"""Greedy decoding in batches; finished answers leave their batch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mfpo.answer.decoders import decoder

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from mfpo.answer.questions import Question
    from mfpo.answer.sample import Draw

# Of LLaVA and Qwen-VL, where nothing but tokens and mask is needed once the prompt is in the cache.
PROMPT = {"input_ids", "attention_mask", "pixel_values", "image_sizes", "image_grid_thw", "mm_token_type_ids"}


@decoder("greedy")
def greedy(
    model: Any,
    processor: Any,
    questions: Sequence["Question"],
    images: Sequence["Image.Image"],
    max_new_tokens: int,
) -> list[str]:
    """Generate the likeliest token at each step, whatever the model's generation settings are."""
    from mfpo.models import plain_generation
    from mfpo.processors import encode_questions

    texts = [question["text"] for question in questions]
    batch = dict(encode_questions(processor, texts, images).to(model.device, model.dtype))
    with plain_generation(model, processor.tokenizer):
        if batch.keys() <= PROMPT and model.generation_config.eos_token_id is not None:
            answers = finish_rows(model, batch, max_new_tokens)
        else:
            answers = model.generate(**batch, max_new_tokens=max_new_tokens)[:, batch["input_ids"].shape[1] :]
    return list(processor.batch_decode(answers, skip_special_tokens=True))


def finish_rows(
    model: Any, batch: dict[str, "Tensor"], max_new_tokens: int, *, cache: Any = None, draw: "Draw | None" = None
) -> list["Tensor"]:
    """The new tokens of each row. Finished rows leave the batch, or they would cost as much as the longest one.

    With `draw`, tokens are drawn, the last of `input_ids` is the first new one, and `cache` holds all before it.
    """
    import torch
    from torch.nn.functional import pad
    from transformers import DynamicCache, StoppingCriteriaList

    from mfpo.models import cache_argument

    start = batch["input_ids"].shape[1] - (draw is not None)
    eos = torch.tensor(model.generation_config.eos_token_id, device=model.device).view(-1)

    def many_have_ended(input_ids: "Tensor", scores: Any, **options: Any) -> "Tensor":
        """A quarter of the rows, and at least four, since shrinking the batch has a cost too."""
        has_ended = torch.isin(input_ids[:, start:], eos).any(dim=1)
        return torch.full_like(has_ended, int(has_ended.sum()) >= max(4, len(has_ended) / 4))

    cache = cache or DynamicCache(config=model.config)
    name = cache_argument(model)
    answers: dict[int, Tensor] = {}
    rows = torch.arange(len(batch["input_ids"]), device=model.device)
    tokens = batch["input_ids"]
    while True:
        before = batch["input_ids"].shape[1]
        left_over = start + max_new_tokens - before
        if left_over:
            stop = StoppingCriteriaList([many_have_ended])
            how = {"stopping_criteria": stop, "logits_processor": [draw] if draw else None}
            tokens = model.generate(**batch, **{name: cache}, max_new_tokens=left_over, **how)
        goes_on = ~torch.isin(tokens[:, start:], eos).any(dim=1) & (tokens.shape[1] < start + max_new_tokens)
        answers |= dict(zip(rows[~goes_on].tolist(), tokens[~goes_on, start:], strict=True))
        if not goes_on.any():
            return [answers[row] for row in range(len(answers))]
        unfinished = goes_on.nonzero()[:, 0]
        rows, tokens = rows[unfinished], tokens[unfinished]
        mask = pad(batch["attention_mask"][unfinished], (0, tokens.shape[1] - before), value=1)
        batch = {"input_ids": tokens, "attention_mask": mask}
        keep_rows(model, cache, unfinished)
        if draw:
            draw.keep(unfinished)


def keep_rows(model: Any, cache: Any, rows: "Tensor") -> None:
    """Leave only `rows` of what the model remembers of a batch, in that order; a row may be kept several times."""
    cache.reorder_cache(rows)  # made for beams; unlike batch_select_indices, layers of every kind have it
    for part in model.modules():
        if getattr(part, "rope_deltas", None) is not None:  # how far Qwen-VL's positions are behind, by row
            part.rope_deltas = part.rope_deltas[rows]
