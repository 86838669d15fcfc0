"""CHAIR: which share of the objects that captions name is not in the image (Rohrbach et al. 2018, section 2.1)."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, answered, check_captions, read_answers, thinking
from mfpo.evaluate.benchmark import AllowMissing, PlainResult, benchmark
from mfpo.evaluate.figures import Tally, mean
from mfpo.files import some
from mfpo.image_names import find_all, image_key
from mfpo.settings import about


@dataclass(frozen=True)
class CaptionScore:
    """The classes that one caption names, in order and with repetitions, and those that are in its image."""

    answer: Answer
    mentioned: tuple[str, ...]
    truth: frozenset[str]

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """The mentioned classes that are not in the image."""
        return tuple(name for name in self.mentioned if name not in self.truth)

    @property
    def found(self) -> frozenset[str]:
        """The classes in the image that the caption names."""
        return self.truth.intersection(self.mentioned)

    def detail(self) -> dict[str, Any]:
        """What `details` lists of it."""
        image_id, objects, absent = self.answer.image_id, list(self.mentioned), list(self.hallucinated)
        return {"image_id": image_id, "objects": objects, "hallucinated": absent}


@dataclass(frozen=True, kw_only=True)
class Chair(PlainResult):
    """`chair_s`, `chair_i` and `recall` in percent, `length` in words a caption; a share of nothing is 0.

    Of the facts, `missing` captions failed or have no annotations, and are not scored.
    """

    captions: tuple[CaptionScore, ...]


@benchmark("chair", asked_freely=True)
def chair(
    answers: Path | Sequence[Answer],
    annotations: Path | Mapping[str, frozenset[str]],
    *,
    synonyms: Annotated[Path | None, about("CHAIR's table of words, to read captions as its script does")] = None,
    allow_missing: AllowMissing = False,
) -> Chair:
    """CHAIR: the share of named objects that are not in the image (Rohrbach et al. 2018).

    The annotations are COCO's instances JSON, or JSONL with `image_id` and `objects`, such as `mfpo eval truth` writes.

    Example: mfpo eval chair captions.jsonl --annotations instances_val2014.json --json chair.json

    As in the official script:

    - `chair_s`: captions with at least one hallucinated object / captions.
    - `chair_i`: hallucinated mentions / mentions; every mention counts, repeated ones too.
    - `recall` (AMBER's Cover): classes in the image that its caption names / classes in the image, both summed over the
      captions.

    `synonyms` takes CHAIR's own table, and with it all that the script does to words: then the figures are the
    script's, and `official` says whether the table is the published one.

    In memory, the annotations are the COCO classes in each image, as `load_annotations` gives them, or by `image_key`.
    Raises MfpoError when there is no caption, when one comes twice, when all are a yes or no, or when captions failed,
    have no image or one without annotations; `allow_missing` counts these.
    """
    if isinstance(annotations, Path):
        from mfpo.truth import load_annotations  # and with it textblob, which takes seconds

        annotations = load_annotations(annotations)
    if isinstance(answers, Path):
        answers = read_answers(answers)
    classes_in, official = read_by(synonyms)
    scores = _scores(answers, annotations, classes_in, allow_missing)
    return Chair(
        _tallies(scores),
        facts={
            "official": official,
            "captions": len(scores),
            "mentions": sum(len(score.mentioned) for score in scores),
            "empty": sum(not score.answer.text.strip() for score in scores),
            "missing": len(answers) - len(scores),
            **thinking(score.answer for score in scores),
        },
        details=[score.detail() for score in scores],
        captions=scores,
    )


def read_by(synonyms: Path | None) -> tuple[Callable[[str], list[str]], bool]:
    """What gives the classes that a caption names, and whether it is the official script with its own table.

    Raises MfpoError as `read_official_table`.
    """
    if synonyms is None:
        from mfpo.truth import our_classes  # and with it textblob, which takes seconds

        return our_classes, False
    from mfpo.evaluate.chair_official import official_classes, read_official_table

    table = read_official_table(synonyms)
    return partial(official_classes, table=table), table.published


def _scores(
    answers: Sequence[Answer],
    truth: Mapping[str, frozenset[str]],
    classes_in: Callable[[str], list[str]],
    allow_missing: bool,
) -> tuple[CaptionScore, ...]:
    if not answers:
        raise MfpoError("there is no caption to score")
    counts = Counter(_name(answer) for answer in answers)
    double = [name for name, count in counts.items() if count > 1]
    if double:
        raise MfpoError(f"captions that appear more than once: {some(double)}; give each of them once")
    answers = answered(answers, allow_missing=allow_missing)
    check_captions(answer.text for answer in answers)
    classes_by_image = find_all((answer.image_id or "" for answer in answers), truth)
    unknown = [
        (answer.image_id or _name(answer))[:80] for answer in answers if (answer.image_id or "") not in classes_by_image
    ]
    if unknown and not (allow_missing and len(unknown) < len(answers)):
        raise MfpoError(
            f"{len(unknown)} of {len(answers)} captions have images without annotations: {some(unknown)}; "
            "give the annotations of these images, or score the others with allow_missing=true"
        )
    return tuple(
        CaptionScore(answer, tuple(classes_in(answer.text)), classes_by_image[answer.image_id])
        for answer in answers
        if answer.image_id in classes_by_image
    )


def _name(answer: Answer) -> str:
    """What tells a caption from others: an image may have one for each of several questions."""
    if answer.image_id is None:
        return f"question {answer.question_id} (no image_id)"
    image = image_key(answer.image_id)
    return image if answer.question_id is None else f"{image} (question {answer.question_id})"


def _tallies(scores: Iterable[CaptionScore]) -> dict[str, Tally]:
    """Each figure as parts of wholes; the captions of one image are one unit, since they share its truth."""
    parts: dict[str, dict[str, tuple[float, ...]]] = {"chair_s": {}, "chair_i": {}, "recall": {}, "length": {}}
    for score in scores:
        image = image_key(str(score.answer.image_id))
        for name, part, whole in (
            ("chair_s", bool(score.hallucinated), 1),
            ("chair_i", len(score.hallucinated), len(score.mentioned)),
            ("recall", len(score.found), len(score.truth)),
            ("length", len(score.answer.text.split()), 1),
        ):
            before = parts[name].get(image, (0, 0))
            parts[name][image] = before[0] + part, before[1] + whole
    return {name: Tally(units, mean) if name == "length" else Tally(units) for name, units in parts.items()}
