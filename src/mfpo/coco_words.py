"""COCO's 80 classes, and the words that name them: the table coco_words.txt."""

from importlib.resources import files

# CHAIR's animals and vehicles: the word before one of them says its age or use, and is no person.
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe")
_VEHICLES = ("car", "airplane", "bus", "train", "truck", "boat")
_BEFORE = {"baby": ANIMALS, "adult": ANIMALS, "passenger": _VEHICLES}


def _read_words() -> tuple[tuple[str, ...], dict[str, str]]:
    """The classes in COCO's order, and each term's class; terms that name no class have "none"."""
    lines = files("mfpo").joinpath("coco_words.txt").read_text(encoding="utf-8").splitlines()
    classes = [line.partition(":") for line in lines if not line.startswith("#")]
    terms = {word.strip(): name for name, _, words in classes for word in [name, *words.split(",")] if word.strip()}
    for before, names in _BEFORE.items():
        terms |= {f"{before} {word}": name for word, name in list(terms.items()) if name in names and " " not in word}
    return tuple(dict.fromkeys(name for name, _, _ in classes if name != "none")), terms


CATEGORIES, TERMS = _read_words()
