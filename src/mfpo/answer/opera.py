"""OPERA (Huang et al., CVPR 2024): beam search that rolls back when the answer relies on too few of its own tokens.

Computes the same as the authors' code (shikiw/OPERA 61426ef, `opera_beam_search`), which gave the published numbers.
It differs from the paper's text: the column score has a factor of 1e-7; while an answer has at most 10 tokens, a
candidate is rewarded for its attention on the image instead; the local window is the whole answer; a place must be
found more than (not at least) `threshold` times, and by every beam; `num_attn_candidates` is also the highest number
of rollbacks to a place; places may decrease; a new choice is made from the whole vocabulary, without penalty.

We differ from that code in four things. Scores are logarithms in float32, where the code's products in float16 become
infinite or 0 and then tie. Beams are ranked by their sum divided by the answer's length, as transformers does today;
the code's version includes the prompt. The history is as long as the answer, not 512. One pass scores all
candidates, on a forked cache; a rollback re-reads the prefixes in one pass.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

from mfpo.answer.decoders import decoder
from mfpo.errors import MfpoError
from mfpo.settings import about

if TYPE_CHECKING:
    from PIL import Image

    from mfpo.answer.questions import Question


@decoder("opera")
def opera(
    model: Any,
    processor: Any,
    questions: Sequence["Question"],
    images: Sequence["Image.Image"],
    max_new_tokens: int,
    *,
    num_beams: Annotated[int, about("beams", least=2)] = 5,
    scale_factor: Annotated[float, about("factor applied to attention before taking products (sigma)", above=0)] = 50.0,
    threshold: Annotated[
        int, about("roll back once all beams share a location more often than this (r)", least=1)
    ] = 15,
    num_attn_candidates: Annotated[
        int, about("candidate tokens per beam; also rollbacks to a location (N_can, beta)", least=1)
    ] = 5,
    penalty_weight: Annotated[float, about("weight of the over-trust penalty (alpha)", least=0)] = 1.0,
) -> list[str]:
    """Answer questions one by one. Leaves the model with eager attention.

    The defaults are those of OPERA's README. Raises MfpoError for a model that gives the image no attention among its
    tokens.
    """
    from mfpo.answer.opera_search import search
    from mfpo.processors import encode_questions

    model.set_attn_implementation("eager")
    ends = model.generation_config.eos_token_id
    ends = processor.tokenizer.eos_token_id if ends is None else ends
    answers = []
    for question, image in zip(questions, images, strict=True):
        prompt = encode_questions(processor, [question["text"]], [image]).to(model.device, model.dtype)
        if "cross_attention_mask" in prompt:
            raise MfpoError(
                f"opera: {type(model).__name__} sees the image through cross-attention, which no token's attention "
                "shows; decode greedily"
            )
        answer = search(
            model,
            prompt,
            eos={ends} if isinstance(ends, int) else set(ends or ()),
            max_new_tokens=max_new_tokens,
            num_beams=num_beams,
            num_attn_candidates=num_attn_candidates,
            scale_factor=scale_factor,
            threshold=threshold,
            penalty_weight=penalty_weight,
        )
        answers.append(answer)
    return list(processor.batch_decode(answers, skip_special_tokens=True))
