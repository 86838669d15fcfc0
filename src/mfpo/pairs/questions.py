"""What to ask about: a folder of images, or a file of questions."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mfpo.answer.hallusion import hallusion_id, is_hallusion
from mfpo.errors import MfpoError, RecordError, brief
from mfpo.files import beginning, check_json, stream_rows
from mfpo.folders import file_states
from mfpo.hub import IMAGE_FILES

if TYPE_CHECKING:
    from mfpo.records import EncodedImage, NamedMask

# What is asked about images without questions, each by its id.
PROMPTS = (
    "Describe this image in detail.",
    "What is in this picture?",
    "Tell me everything that you see here.",
    "Give a full description of the photo.",
    "What does this image show? Go into detail.",
    "Write a paragraph about what can be seen in this image.",
    "Which things are in this picture, and where are they?",
    "Describe the scene and the objects in it.",
)


class Asked(NamedTuple):
    """A question about one image; `objects` are the names of all that is in it, and `masks` theirs, if known."""

    id: str
    image: "EncodedImage"
    image_name: str
    text: str
    objects: Sequence[str] | None = None
    masks: "list[NamedMask] | None" = None


class Questions(Protocol):
    """Rows that become questions, as a `sources.Source` has rows that become records."""

    name: str
    provenance: Any

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The rows in order, cheap to read."""
        ...

    def id(self, row: dict[str, Any], number: int) -> str: ...

    def question(self, row: dict[str, Any], number: int) -> Asked:
        """Raises RecordError when the row cannot be asked."""
        ...


def open_questions(source: Path, images: Path | None, seed: int) -> Questions:
    """The questions of a folder of images or of a file. Raises MfpoError when there is none, or no image folder."""
    if source.is_dir():
        if images is not None:
            raise MfpoError(f"{source}: is the folder of the images; leave out --images, or give a file of questions")
        return ImageFolder(source, seed)
    if images is None:
        raise MfpoError(f"{source}: questions need the folder of their images; give --images")
    return QuestionFile(source, images)


class ImageFolder:
    """Every image below a folder, each with one of PROMPTS. Raises MfpoError without an image."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.name = folder.resolve().name
        self._folder, self._seed = folder, seed
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_FILES and file.is_file())
        self._names = [file.relative_to(folder).as_posix() for file in files]
        if not files:
            raise MfpoError(f"{folder}: no image there ({', '.join(IMAGE_FILES)}); give the folder of the images")
        states = json.dumps(file_states(files))  # a hash of them, as there may be a million
        self.provenance = {
            "images": str(folder.absolute()),
            "count": len(files),
            "states": hashlib.sha256(states.encode()).hexdigest(),
            "prompts": PROMPTS,
        }

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return ({"image": name} for name in self._names)

    def id(self, row: dict[str, Any], number: int) -> str:
        return _writable(row["image"])

    def question(self, row: dict[str, Any], number: int) -> Asked:
        from mfpo.records import is_text

        name = row["image"]
        if not is_text(name):
            raise RecordError(f"image {brief(name)} has a name that is not UTF-8; rename it")
        digest = hashlib.sha256(f"{self._seed} {name}".encode()).digest()
        text = PROMPTS[int.from_bytes(digest[:8], "big") % len(PROMPTS)]
        return Asked(name, _load(self._folder, name), name, text)


class QuestionFile:
    """Questions as `mfpo answer` takes them, each with `objects` where it brings them: names, or masks with names."""

    def __init__(self, file: Path, images: Path) -> None:
        check_json(beginning(file), file)
        if not images.is_dir():
            raise MfpoError(f"{images}: no such folder; give the image folder with --images")
        self.name = file.name
        self._file, self._images = file, images
        self.provenance = {"questions": file_states([file]), "images": str(images.absolute())}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for place, row, fault in stream_rows(self._file):
            yield {"place": f"{self._file.name}, {place}", "row": row, "fault": fault}

    def id(self, row: dict[str, Any], number: int) -> str:
        fields = row["row"] or {}
        if is_hallusion(fields):
            return _writable(hallusion_id(fields))
        return _writable(next((fields[key] for key in ("question_id", "id") if fields.get(key) is not None), number))

    def question(self, row: dict[str, Any], number: int) -> Asked:
        from mfpo.answer.questions import read_question  # with datasets, which takes a second
        from mfpo.sources.rows import read_objects

        if row["row"] is None:
            raise RecordError(f"{row['place']} {row['fault']}")
        if is_hallusion(row["row"]) and row["row"]["filename"] is None:
            raise RecordError(f"{row['place']}: the question has no figure")
        try:
            question = read_question(row["row"], number, row["place"])
        except MfpoError as error:
            raise RecordError(str(error)) from None
        objects = row["row"].get("objects")
        masks = read_objects(objects) if objects else None
        names = [mask["name"] for mask in masks] if masks else objects
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise RecordError(f"{row['place']}: objects must be a list of names, or of names with masks")
        image = _load(self._images, question["image"])
        name = question.get("name", question["image"])
        return Asked(question["question_id"], image, name, question["text"], names, masks)


def _writable(id: object) -> str:
    """The text of an id; half a surrogate pair, or what stands for a byte that is no UTF-8, is written in full."""
    return str(id).encode(errors="backslashreplace").decode()


def _load(folder: Path, name: str) -> "EncodedImage":
    """Raises RecordError when the image is missing or broken, also where only its pixels show it."""
    from mfpo.images import decode_image, load_image

    image = load_image(folder, name)
    decode_image(image)
    return image
