"""The picture book: drawn scenes with exactly known objects, and tiny LLaVAs trained on them.

It is a source, a segmenter and a model for `mfpo demo`, the tests and the docs; the rest of the package does not know
it.
"""

from pathlib import Path

from mfpo.hub import check_model_files, find_model

# The folder of the first book's model.
WEIGHTS = Path(__file__).parent / "weights"

# That of each book's model, by the name of the book; `books` knows more of them.
FOLDERS = {"picturebook": WEIGHTS, "picturebook-context": WEIGHTS.with_name("weights_context")}

NAMES = tuple(FOLDERS)


def model_folder(name: str) -> Path:
    """The folder of a model given on the command line: a book's is in the package, for others see `find_model`.

    Raises MfpoError as `check_model_files`.
    """
    folder = FOLDERS.get(name) or find_model(name)
    check_model_files(folder)
    return folder
