"""CHAIR's ground truth: the COCO classes in each image, from instances and reference captions."""

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mfpo.class_names import coco_class
from mfpo.coco import read_coco
from mfpo.errors import MfpoError
from mfpo.files import read_id, read_rows, some
from mfpo.folders import whole_file
from mfpo.image_names import ByImage

# Id, file name and COCO classes of an image.
Truth = tuple[str, str | None, frozenset[str]]


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


def our_classes(caption: str) -> list[str]:
    """The classes that a caption names by our table of words."""
    from mfpo.objects import mentions  # with textblob, which takes a second

    return [mention.category for mention in mentions(caption)]


def prepare_truth(
    instances: Sequence[Path],
    captions: Sequence[Path],
    out: Path,
    classes_in: Callable[[str], Sequence[str]] = our_classes,
) -> int:
    """Write CHAIR's ground truth to a JSONL file (`.gz` too) that `load_annotations` reads; return the images in it.

    An image holds the classes of its instances, and those that its reference captions name (section 2.1), as
    `classes_in` reads them: by our table, or by the script's own (`chair_official.official_classes`). COCO's files
    of several splits go into one. Raises MfpoError for a file of another form, and when `out` is named otherwise or
    exists.
    """
    if ".jsonl" not in out.suffixes:
        raise MfpoError(f"{out}: the truth is one JSON object a line; name it .jsonl or .jsonl.gz")
    if out.exists():
        raise MfpoError(f"{out} exists already; give another --out or remove it")
    truth = ByImage[set[str]](out)
    names: dict[str, dict[str, str]] = {}
    entries = [entry for path in instances for entry in _read_truth(path)]
    entries += [entry for path in captions for entry in _named_in_captions(path, classes_in)]
    for image_id, name, objects in entries:
        key = truth.add(image_id, name)
        truth.setdefault(key, set()).update(objects)
        # A name that is no number of COCO's goes beside the id.
        names[key] = {"image_id": key} if key != name else {"image_id": image_id, "file_name": name}
    rows = "".join(json.dumps({**names[key], "objects": sorted(truth[key])}) + "\n" for key in sorted(truth))
    data = rows.encode()
    with whole_file(out) as partial:
        partial.write_bytes(gzip.compress(data, mtime=0) if out.suffix == ".gz" else data)
    return len(truth)


def _read_truth(path: Path) -> list[Truth]:
    images = list(_from_rows(path) if ".jsonl" in path.suffixes else _from_instances(path))
    classes = {name: coco_class(name) for name in {name for _, _, objects in images for name in objects}}
    unknown = sorted(repr(name[:40])[1:-1] for name, known in classes.items() if known is None)
    if unknown:
        raise MfpoError(f"{path}: {some(unknown)} not among COCO's 80 classes, the only ones that CHAIR looks for")
    return [(id, name, frozenset(str(classes[object_name]) for object_name in objects)) for id, name, objects in images]


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
                f"{where}: image {some([image_id])} appears a second time, with other objects than in "
                f"{before.rpartition(', ')[2]}; give each image once"
            )
        yield image_id, name, objects


def _from_instances(path: Path) -> Iterator[tuple[str, str | None, list[str]]]:
    images = read_coco(path, "instances")
    if not any(image.annotations for image in images):
        raise MfpoError(f"{path}: has no annotations, so all objects would count as hallucinated; give the whole file")
    for image in images:
        yield image.id, image.name, [name for name, _ in image.annotations]


def _named_in_captions(path: Path, classes_in: Callable[[str], Sequence[str]]) -> Iterator[Truth]:
    for image in read_coco(path, "captions"):
        yield image.id, image.name, frozenset(name for caption, _ in image.annotations for name in classes_in(caption))
