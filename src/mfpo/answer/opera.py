"""OPERA (Huang et al., CVPR 2024): beam search that goes back where the answer leans on too few of its own tokens.

What the authors' code computes (shikiw/OPERA 61426ef, `opera_beam_search`), which is what published numbers come from.
It differs from the paper's text: the column score has a factor of 1e-7; while an answer has at most 10 tokens, a
candidate is rewarded for its attention on the image instead; the local window is the whole answer; a place must be
found more than (not at least) `threshold` times, and by every beam; `num_attn_candidates` is also the highest number
of rollbacks to a place; places may decrease; what is chosen anew is chosen from the whole vocabulary, unpenalised.

We differ from that code in four things. Scores are logarithms in float32, where the code's products in float16 become
infinite or 0 and then tie. Beams are ranked by their sum divided by the answer's length, as transformers does today;
the code's version of it counted the prompt in. The history is as long as the answer, not 512. One pass asks all
candidates, on a forked cache; a rollback reads the prefixes anew in one pass.
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
    scale_factor: Annotated[
        float, about("attention is multiplied by it before products are taken (sigma)", above=0)
    ] = 50.0,
    threshold: Annotated[
        int, about("rollback when each beam found the same place more often than this (r)", least=1)
    ] = 15,
    num_attn_candidates: Annotated[
        int, about("tokens that each beam may go on with; also rollbacks to a place (N_can, beta)", least=1)
    ] = 5,
    penalty_weight: Annotated[float, about("weight of the over-trust penalty (alpha)", least=0)] = 1.0,
) -> list[str]:
    """The answers to some questions, one after the other. Leaves the model attending eagerly.

    The defaults are those of OPERA's README. Raises MfpoError for a model that gives the image no attention among its
    tokens.
    """
    from mfpo.answer.opera_search import search
    from mfpo.models import encode_questions

    model.set_attn_implementation("eager")
    ends = model.generation_config.eos_token_id
    ends = processor.tokenizer.eos_token_id if ends is None else ends
    answers = []
    for question, image in zip(questions, images, strict=True):
        prompt = encode_questions(processor, [question["text"]], [image]).to(model.device, model.dtype)
        if "cross_attention_mask" in prompt:
            raise MfpoError(
                f"opera: {type(model).__name__} sees the image by cross-attention, which no token's attention shows; "
                "decode greedily"
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
