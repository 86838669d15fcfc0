"""The picture book: drawn scenes with exactly known objects, and a tiny LLaVA trained on them.

It is a source, a segmenter and a model for `mfpo demo`, the tests and the docs; the rest of the package does not know
it.
"""

from pathlib import Path

from mfpo.hub import check_model_files, find_model

# The books, of which `books` knows more.
NAMES = ("picturebook", "picturebook-context")

# The folder of the first one's model.
WEIGHTS = Path(__file__).parent / "weights"


def model_folder(name: str) -> Path:
    """The folder of a model given on the command line: `picturebook` is in the package, for others see `find_model`.

    Raises MfpoError as `check_model_files`.
    """
    folder = WEIGHTS if name == "picturebook" else find_model(name)
    check_model_files(folder)
    return folder
