"""One of each kind of extension; `mfpo --plugin plugin.py COMMAND ...` makes the commands know them."""

import re
from typing import Annotated

import numpy as np

import mfpo
from mfpo.build.noise import share
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.figures import Tally
from mfpo.files import read_rows
from mfpo.masks import encode_mask
from mfpo.processors import encode_questions
from mfpo.records import Region
from mfpo.sources.rows import read_answer, read_prompt
from mfpo.sources.table import Pair, TableSource


@mfpo.source("best-worst")
class BestWorst(TableSource):
    """Rows with a best and a worst answer."""

    columns = ("image", "asked", "best", "worst")
    images = "image"

    def pair(self, row):
        return Pair(read_prompt(row, "asked"), read_answer(row, "best"), read_answer(row, "worst"))


@mfpo.segmenter("half")
def half(where, settings):
    """The left or the right half of the image, whatever the keyword: `--regions half=left`."""

    def find(searches):
        found = []
        for search in searches:
            columns = np.arange(search.pixels.shape[1]) < search.pixels.shape[1] // 2
            mask = np.broadcast_to(columns == (where == "left"), search.pixels.shape[:2])
            keyword = search.keywords[0]["text"]
            found.append([Region(keyword=keyword, score=1.0, mask=encode_mask(mask), image=search.number)])
        return found

    return find


@mfpo.corruption("mosaic", needs_regions=True)
def mosaic(pixels, mask, rng, settings, *, cell: Annotated[int, mfpo.about("side of a cell in pixels", least=1)] = 8):
    """The regions in cells of one colour each."""
    rows, columns = (np.arange(side) // cell * cell for side in mask.shape)
    return np.where(mask[..., None], pixels[rows][:, columns], pixels), share(mask)


@mfpo.objective("hinge", terms=("text", "image"), cells=("chosen", "rejected", "rejected_image"))
def hinge(
    ratios,
    *,
    beta: Annotated[float, mfpo.about("weight of a log-ratio in a reward", above=0)] = 0.1,
    margin: Annotated[float, mfpo.about("reward by which the chosen side must win", least=0)] = 1.0,
):
    """A hinge on both margins (as SLiC-HF, Zhao et al. 2023), each (batch,)."""
    chosen, rejected, rejected_image = (beta * r for r in (ratios.chosen, ratios.rejected, ratios.rejected_image))
    return {
        "text": (margin - chosen + rejected).clamp(min=0),
        "image": (margin - chosen + rejected_image).clamp(min=0),
    }


@mfpo.decoder("beams")
def beams(
    model, processor, questions, images, max_new_tokens, *, num_beams: Annotated[int, mfpo.about("beams", least=2)] = 3
):
    """Plain beam search."""
    batch = encode_questions(processor, [question["text"] for question in questions], images)
    batch = batch.to(model.device, model.dtype)
    output = model.generate(**batch, num_beams=num_beams, do_sample=False, max_new_tokens=max_new_tokens)
    return processor.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


@mfpo.benchmark("brevity")
def brevity(answers, annotations, *, words: Annotated[int, mfpo.about("words of a short answer", least=1)] = 40):
    """Answers that are short, in percent.

    Example: mfpo --plugin plugin.py eval brevity answers.jsonl --annotations questions.jsonl words=20
    """
    asked = {row["question_id"] for _, row in read_rows(annotations)}
    counts = {a.question_id: (len(re.findall(r"\w+", a.text)) <= words, 1) for a in read_answers(answers)}
    return mfpo.Result({"short": Tally({name: count for name, count in counts.items() if name in asked})})
