"""The picture book: drawn scenes with exactly known objects, and a tiny LLaVA trained on them.

It is a source, a segmenter and a model for `mfpo demo`, the tests and the docs; the rest of the package does not know
it.
"""

from pathlib import Path

from mfpo.errors import MfpoError, brief
from mfpo.hub import check_model_files, find_model

# The folder of each book's model; `books` has the rest of a book.
FOLDERS = {
    "picturebook": Path(__file__).parent / "weights",
    "picturebook-context": Path(__file__).parent / "weights_context",
}
NAMES = tuple(FOLDERS)
WEIGHTS = FOLDERS["picturebook"]


def scene_count(source: str) -> int | None:
    """N of a source called `picturebook:N`, None for others. Raises MfpoError for a book's name with no number.

    >>> scene_count("picturebook:600"), scene_count("pairs.jsonl")
    (600, None)
    """
    name, colon, count = source.partition(":")
    if name not in NAMES or not colon:
        return None
    if not count.isdecimal() or int(count) == 0:
        raise MfpoError(f"{source}: {brief(count)} is not a number of scenes; write {name}:600")
    return int(count)


def model_folder(name: str) -> Path:
    """The folder of a model given on the command line: a book's, which is in the package, or that of `find_model`.

    Raises MfpoError as `check_model_files`.
    """
    folder = FOLDERS.get(name) or find_model(name)
    check_model_files(folder)
    return folder
