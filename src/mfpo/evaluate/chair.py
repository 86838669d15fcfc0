"""CHAIR: which share of the objects that captions name is not in the image (Rohrbach et al. 2018, section 2.1)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, image_key, percent, read_id, read_json, read_rows, some
from mfpo.objects import CATEGORIES, Mention, mentions


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
    """CHAIR_s, CHAIR_i and recall in percent, `length` in words a caption; a share of nothing is 0."""

    chair_s: float
    chair_i: float
    recall: float
    length: float
    captions: int
    mentions: int
    details: tuple[CaptionScore, ...]


def chair(answers: Sequence[Answer], truth: Mapping[str, frozenset[str]]) -> Chair:
    """Score captions as the official script does.

    - CHAIR_s: captions with at least one hallucinated object / captions.
    - CHAIR_i: hallucinated mentions / mentions; every mention counts, repeated ones too.
    - recall (AMBER's Cover): classes in the image that its caption names / classes in the image, both summed over the
      captions.

    `truth` maps `image_key` of each image to the COCO classes in it. Raises MfpoError when there is no caption, or when
    captions have no image or one that `truth` does not know.
    """
    if not answers:
        raise MfpoError("there is no caption to score")
    details = _scores(answers, truth)
    named = sum(len(score.mentions) for score in details)
    return Chair(
        chair_s=percent(sum(bool(score.hallucinated) for score in details), len(details)),
        chair_i=percent(sum(len(score.hallucinated) for score in details), named),
        recall=percent(sum(len(score.found) for score in details), sum(len(score.truth) for score in details)),
        length=sum(len(answer.text.split()) for answer in answers) / len(answers),
        captions=len(details),
        mentions=named,
        details=details,
    )


def chair_json(result: Chair) -> dict[str, Any]:
    """The figures, and for each caption the classes it names and those of them that are hallucinated."""
    details = [
        {
            "image_id": score.answer.image_id,
            "objects": [mention.category for mention in score.mentions],
            "hallucinated": [mention.category for mention in score.hallucinated],
        }
        for score in result.details
    ]
    names = ("chair_s", "chair_i", "recall", "length", "captions", "mentions")
    return {name: getattr(result, name) for name in names} | {"details": details}


def load_annotations(path: Path) -> dict[str, frozenset[str]]:
    """The COCO classes in each image, by `image_key`.

    Reads JSONL or JSONL.gz with `image_id` and `objects` (a list of class names), and COCO's instances JSON, where an
    image without annotations holds nothing. Raises MfpoError for a file of another form or a class that is not COCO's.
    """
    pairs = _from_rows(path) if ".jsonl" in path.suffixes else _from_instances(path)
    truth: dict[str, frozenset[str]] = {}
    for image_id, objects in pairs:
        truth[image_key(image_id)] = truth.get(image_key(image_id), frozenset()).union(objects)
    unknown = sorted(frozenset[str]().union(*truth.values()).difference(CATEGORIES))
    if unknown:
        raise MfpoError(f"{path}: {some(unknown)} not among COCO's 80 classes, the only ones that CHAIR looks for")
    return truth


def _scores(answers: Sequence[Answer], truth: Mapping[str, frozenset[str]]) -> tuple[CaptionScore, ...]:
    keys = [image_key(answer.image_id or "") for answer in answers]
    unknown = [answer for answer, key in zip(answers, keys, strict=True) if key not in truth]
    if unknown:
        names = [answer.image_id or f"question {answer.question_id} (no image_id)" for answer in unknown]
        raise MfpoError(
            f"{len(unknown)} of {len(answers)} captions are of images without annotations: {some(names)}; "
            "give the annotations of these images"
        )
    return tuple(
        CaptionScore(answer, tuple(mentions(answer.text)), truth[key])
        for answer, key in zip(answers, keys, strict=True)
    )


def _from_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    for where, row in read_rows(path):
        image_id, objects = read_id(row, ("image_id",), where), row.get("objects")
        if image_id is None or not isinstance(objects, list) or not all(isinstance(name, str) for name in objects):
            raise MfpoError(f'{where}: must be {{"image_id": ..., "objects": ["class", ...]}}')
        yield image_id, objects


def _from_instances(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The objects of each image, by its file name, and by its id where no other image's file is named like it."""
    data = read_json(path)
    try:
        names = {category["id"]: str(category["name"]) for category in data["categories"]}
        files = {image["id"]: str(image.get("file_name", image["id"])) for image in data["images"]}
        objects: dict[Any, list[str]] = {image_id: [] for image_id in files}
        for entry in data["annotations"]:
            objects[entry["image_id"]].append(names[entry["category_id"]])
    except (AttributeError, KeyError, TypeError) as error:
        raise MfpoError(
            f"{path}: is no COCO instances file ({error}); give one with images, categories and annotations, "
            "or a .jsonl file with image_id and objects"
        ) from None
    taken = {image_key(name) for name in files.values()}
    for image_id, found in objects.items():
        yield files[image_id], found
        if image_key(str(image_id)) not in taken:
            yield str(image_id), found
