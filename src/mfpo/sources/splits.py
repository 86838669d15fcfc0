"""Which files of a dataset are read: those of one subset and one split, told apart as Hugging Face's `datasets` does.

The dataset's card, README.md, may list the subsets (`configs` in its front matter), each with the files of its splits.
Where it lists none, the names of files and folders say the split.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mfpo.errors import MfpoError, brief, first_line
from mfpo.sources.files import data_files, of_one_kind

# The splits of a subset, each with its files.
Splits = dict[str, list[Path]]

# What `datasets` takes for a split where it is a word in the name of a file or folder.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
# The files of `push_to_hub`, whose splits may have any name.
_PUSHED = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")


class Chosen(NamedTuple):
    """The files to read, and in words what else is there."""

    files: list[Path]
    left_out: list[str]


def choose_files(place: Path, split: str | None = None, subset: str | None = None) -> Chosen:
    """The data files below the folder `place` that are of `split`, by default train, and of `subset`.

    A `place` that is a file has been chosen by the user, whatever its name says. Raises MfpoError when there is no such
    split or subset, when one of several subsets has to be chosen, and when the card cannot be read.
    """
    if not place.is_dir():
        if subset is not None or split not in (None, split_of(place.name)):
            raise MfpoError(f"{place}: is one file, of split {split_of(place.name)}; give the folder to choose from")
        return Chosen([place], [])
    files = data_files(place)
    subsets, default = _listed_subsets(place, files)
    subset, split = subset or default, split or "train"
    _check_choice(place, "subset", subset, subsets)
    splits = subsets[subset]
    _check_choice(place, "split", split, splits)
    left_out = [
        f"split {one} ({len(files)} file{'s' * (len(files) > 1)})" for one, files in splits.items() if one != split
    ]
    left_out += [f"subset {one}" for one in subsets if one != subset]
    return Chosen(of_one_kind(splits[split]), left_out)


def _check_choice(place: Path, kind: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        fault = f"has no {kind} {brief(name)}" if name else f"has several {kind}s"
        others = f" or {len(known) - 10} others" if len(known) > 10 else ""
        raise MfpoError(f"{place}: {fault}; choose {' or '.join(f'{kind}={one}' for one in [*known][:10])}{others}")


def _listed_subsets(place: Path, files: Sequence[Path]) -> tuple[dict[str, Splits], str]:
    """The subsets that the card lists and that have a file here, and the default one, "" where one has to be chosen."""
    card = place / "README.md"
    try:
        configs = _front_matter(card).get("configs") or [{"config_name": "default"}]
        subsets = {str(config["config_name"]): _listed_splits(config, place, files) for config in configs}
        marked = [str(config["config_name"]) for config in configs if config.get("default")]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise MfpoError(
            f"{card}: its `configs` cannot be read ({type(error).__name__}: {first_line(error)}); "
            "mend it, or give a file"
        ) from None
    found = {name: splits for name, splits in subsets.items() if splits}
    if not found:
        raise MfpoError(f"{card}: none of the files that its `configs` lists is there; give the file to read")
    only = list(found) if len(found) == 1 else []
    return found, next((name for name in [*marked, "default", *only] if name in found), "")


def _front_matter(card: Path) -> dict[str, Any]:
    text = card.read_text(encoding="utf-8-sig") if card.is_file() else ""
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    values = yaml.safe_load(found[1]) if found else {}
    return values if isinstance(values, dict) else {}


def _listed_splits(config: Mapping[str, Any], place: Path, files: Sequence[Path]) -> Splits:
    """The splits of one of the card's `configs`, those without a file here left out."""
    folder = place / config.get("data_dir", "")
    paths = {file.relative_to(folder).as_posix(): file for file in files if file.is_relative_to(folder)}
    listed = config.get("data_files")
    if listed is None:
        return _by_name(folder, of_one_kind([*paths.values()]))
    if isinstance(listed, dict):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    elif isinstance(listed, str) or isinstance(listed[0], str):
        listed = [{"split": "train", "path": listed}]
    splits: Splits = {}
    for item in listed:
        patterns = [item["path"]] if isinstance(item["path"], str) else item["path"]
        found = [file for path, file in paths.items() if any(_matches(path, pattern) for pattern in patterns)]
        if found:
            splits[str(item["split"])] = found
    return splits


def _matches(path: str, pattern: str) -> bool:
    """Whether `path` is one of those that `pattern` stands for, where `**` also stands for folders.

    >>> [_matches("data/a/train-0.parquet", p) for p in ("data/**/train-*", "data/train-*", "**", "data/[a-b]/*")]
    [True, False, True, True]
    """
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = "".join(wild.get(part) or (part if number % 2 else re.escape(part)) for number, part in enumerate(parts))
    return re.fullmatch(regex, path) is not None


def _by_name(folder: Path, files: Sequence[Path]) -> Splits:
    splits: Splits = {}
    for file in files:
        splits.setdefault(split_of(file.relative_to(folder).as_posix()), []).append(file)
    return splits


def split_of(path: str) -> str:
    """The split that the name of a file below a dataset's folder says; train where it says none.

    >>> [split_of(path) for path in ("data/train_prefs-00000-of-00002.parquet", "dev/part-1.jsonl", "contest.jsonl")]
    ['train_prefs', 'validation', 'train']
    """
    if pushed := _PUSHED.match(path):
        return pushed[1]
    for part in reversed(path.lower().split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return "train"
