"""CHAIR: which share of the objects that captions name is not in the image (Rohrbach et al. 2018, section 2.1)."""

import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mfpo.class_names import coco_class
from mfpo.coco import read_coco
from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, answered, check_captions, thinking
from mfpo.evaluate.figures import Figure, Tally, figure_of, mean
from mfpo.files import read_id, read_rows, some
from mfpo.folders import whole_file
from mfpo.image_names import ByImage, find_all, image_key
from mfpo.objects import Mention, mentions

# Id, file name and COCO classes of an image.
Truth = tuple[str, str | None, frozenset[str]]


@dataclass(frozen=True)
class CaptionScore:
    """What one caption names, in order and with repetitions, and the classes that are in its image."""

    answer: Answer
    mentions: tuple[Mention, ...]
    truth: frozenset[str]

    @property
    def hallucinated(self) -> tuple[Mention, ...]:
        """The mentions of classes that are not in the image."""
        return tuple(mention for mention in self.mentions if mention.category not in self.truth)

    @property
    def found(self) -> frozenset[str]:
        """The classes in the image that the caption names."""
        return self.truth.intersection(mention.category for mention in self.mentions)


@dataclass(frozen=True)
class Chair:
    """CHAIR_s, CHAIR_i and recall in percent, `length` in words a caption; a share of nothing is 0.

    `intervals` has the four again, each with its 95 % bootstrap interval and the number of images; `tallies` is what
    they are made of, for comparisons. `missing` captions failed or have no annotations, and are not scored.
    """

    chair_s: float
    chair_i: float
    recall: float
    length: float
    captions: int
    mentions: int
    empty: int
    missing: int
    intervals: Mapping[str, Figure]
    tallies: Mapping[str, Tally]
    details: tuple[CaptionScore, ...]
    thinking: dict[str, int] = field(default_factory=dict)


def chair(answers: Sequence[Answer], truth: Mapping[str, frozenset[str]], *, allow_missing: bool = False) -> Chair:
    """Score captions as the official script does.

    - CHAIR_s: captions with at least one hallucinated object / captions.
    - CHAIR_i: hallucinated mentions / mentions; every mention counts, repeated ones too.
    - recall (AMBER's Cover): classes in the image that its caption names / classes in the image, both summed over the
      captions.

    `truth` has the COCO classes in each image, as `load_annotations` gives them, or by `image_key`. Raises MfpoError
    when there is no caption, when one comes twice, when all are a yes or no, or when captions failed, have no image or
    one that `truth` does not know; `allow_missing` counts these.
    """
    details = _scores(answers, truth, allow_missing)
    tallies = _tallies(details)
    intervals = {name: figure_of(tally) for name, tally in tallies.items()}
    return Chair(
        **{name: figure.value for name, figure in intervals.items()},
        captions=len(details),
        mentions=sum(len(score.mentions) for score in details),
        empty=sum(not score.answer.text.strip() for score in details),
        missing=len(answers) - len(details),
        thinking=thinking(score.answer for score in details),
        intervals=intervals,
        tallies=tallies,
        details=details,
    )


def chair_json(result: Chair) -> dict[str, Any]:
    """The figures, also with intervals, and for each caption its classes and those of them that are hallucinated."""
    details = [
        {
            "image_id": score.answer.image_id,
            "objects": [mention.category for mention in score.mentions],
            "hallucinated": [mention.category for mention in score.hallucinated],
        }
        for score in result.details
    ]
    names = ("chair_s", "chair_i", "recall", "length", "captions", "mentions", "empty", "missing")
    intervals = {name: asdict(figure) for name, figure in result.intervals.items()}
    figures = {name: getattr(result, name) for name in names} | result.thinking
    return figures | {"intervals": intervals, "details": details}


def load_annotations(path: Path) -> ByImage[frozenset[str]]:
    """The COCO classes in each image; docs/evaluate.md says how its image is found for a caption.

    Reads JSONL or JSONL.gz with `image_id` and `objects` (a list of class names), and COCO's instances JSON, where an
    image without annotations holds nothing. Raises MfpoError for a file of another form or a class that is not COCO's.
    """
    truth = ByImage[frozenset[str]](path)
    for image_id, name, objects in _read_truth(path):
        key = truth.add(image_id, name)
        truth[key] = truth.get(key, frozenset()) | objects
    return truth


def prepare_truth(instances: Sequence[Path], captions: Sequence[Path], out: Path) -> int:
    """Write CHAIR's ground truth to a JSONL file (`.gz` too) that `load_annotations` reads; return the images in it.

    An image holds the classes of its instances, and those that its reference captions name (section 2.1). COCO's files
    of several splits go into one. Raises MfpoError for a file of another form, and when `out` is named otherwise or
    exists.
    """
    if ".jsonl" not in out.suffixes:
        raise MfpoError(f"{out}: the truth is one JSON object a line; name it .jsonl or .jsonl.gz")
    if out.exists():
        raise MfpoError(f"{out} exists already; give another --out or remove it")
    truth = ByImage[set[str]](out)
    names: dict[str, dict[str, str]] = {}
    found = [entry for path in instances for entry in _read_truth(path)]
    found += [entry for path in captions for entry in _named_in_captions(path)]
    for image_id, name, objects in found:
        key = truth.add(image_id, name)
        truth.setdefault(key, set()).update(objects)
        # A name that is no number of COCO's goes beside the id.
        names[key] = {"image_id": key} if key != name else {"image_id": image_id, "file_name": name}
    rows = "".join(json.dumps({**names[key], "objects": sorted(truth[key])}) + "\n" for key in sorted(truth))
    data = rows.encode()
    with whole_file(out) as partial:
        partial.write_bytes(gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
    return len(truth)


def _scores(
    answers: Sequence[Answer], truth: Mapping[str, frozenset[str]], allow_missing: bool
) -> tuple[CaptionScore, ...]:
    if not answers:
        raise MfpoError("there is no caption to score")
    counts = Counter(_name(answer) for answer in answers)
    double = [name for name, count in counts.items() if count > 1]
    if double:
        raise MfpoError(f"{len(double)} captions come more than once ({some(double)}); give each of them once")
    answers = answered(answers, allow_missing=allow_missing)
    check_captions(answer.text for answer in answers)
    found = find_all((answer.image_id or "" for answer in answers), truth)
    unknown = [(answer.image_id or _name(answer))[:80] for answer in answers if (answer.image_id or "") not in found]
    if unknown and not (allow_missing and len(unknown) < len(answers)):
        raise MfpoError(
            f"{len(unknown)} of {len(answers)} captions are of images without annotations: {some(unknown)}; "
            "give the annotations of these images, or score the others with --allow-missing"
        )
    return tuple(
        CaptionScore(answer, tuple(mentions(answer.text)), found[answer.image_id])
        for answer in answers
        if answer.image_id in found
    )


def _name(answer: Answer) -> str:
    """What tells a caption from others: an image may have one for each of several questions."""
    if answer.image_id is None:
        return f"question {answer.question_id} (no image_id)"
    image = image_key(answer.image_id)
    return image if answer.question_id is None else f"{image} (question {answer.question_id})"


def _tallies(details: Iterable[CaptionScore]) -> dict[str, Tally]:
    """Each figure as parts of wholes; the captions of one image are one unit, since they share its truth."""
    parts: dict[str, dict[str, tuple[float, ...]]] = {"chair_s": {}, "chair_i": {}, "recall": {}, "length": {}}
    for score in details:
        image = image_key(str(score.answer.image_id))
        for name, part, whole in (
            ("chair_s", bool(score.hallucinated), 1),
            ("chair_i", len(score.hallucinated), len(score.mentions)),
            ("recall", len(score.found), len(score.truth)),
            ("length", len(score.answer.text.split()), 1),
        ):
            before = parts[name].get(image, (0, 0))
            parts[name][image] = before[0] + part, before[1] + whole
    return {name: Tally(units, mean) if name == "length" else Tally(units) for name, units in parts.items()}


def _read_truth(path: Path) -> list[Truth]:
    images = list(_from_rows(path) if ".jsonl" in path.suffixes else _from_instances(path))
    classes = {name: coco_class(name) for name in {name for _, _, objects in images for name in objects}}
    unknown = sorted(repr(name[:40])[1:-1] for name, known in classes.items() if known is None)
    if unknown:
        raise MfpoError(f"{path}: {some(unknown)} not among COCO's 80 classes, the only ones that CHAIR looks for")
    return [(id, name, frozenset(str(classes[one]) for one in objects)) for id, name, objects in images]


def _from_rows(path: Path) -> Iterator[tuple[str, str | None, list[str]]]:
    images = ByImage[tuple[str, set[str]]](path)
    for where, row in read_rows(path):
        image_id, objects = read_id(row, ("image_id",), where), row.get("objects")
        if image_id is None or not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
            raise MfpoError(f'{where}: must be {{"image_id": ..., "objects": ["class", ...]}}')
        name = read_id(row, ("file_name",), where) or (None if image_id.isdecimal() else image_id)
        before, same = images.setdefault(images.add(image_id, name), (where, set(objects)))
        if same != set(objects):
            raise MfpoError(
                f"{where}: image {some([image_id])} comes a second time, with other objects than in "
                f"{before.rpartition(', ')[2]}; give each image once"
            )
        yield image_id, name, objects


def _from_instances(path: Path) -> Iterator[tuple[str, str | None, list[str]]]:
    images = read_coco(path, "instances")
    if not any(image.annotations for image in images):
        raise MfpoError(f"{path}: has no annotations, by which all objects would be hallucinated; give the whole file")
    for image in images:
        yield image.id, image.name, [name for name, _ in image.annotations]


def _named_in_captions(path: Path) -> Iterator[Truth]:
    for image in read_coco(path, "captions"):
        yield image.id, image.name, frozenset(m.category for caption, _ in image.annotations for m in mentions(caption))
