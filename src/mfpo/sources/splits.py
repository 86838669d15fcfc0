"""Choose the files of one subset and one split of a dataset, by the rules of Hugging Face's `datasets`.

The dataset's card, README.md, may list the subsets (`configs` in its front matter), each with the files of its splits.
If it lists none, the names of files and folders determine the split.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mfpo.errors import MfpoError, brief, first_line
from mfpo.sources.files import data_files, of_one_kind

# The splits of a subset, each with its files.
Splits = dict[str, list[Path]]

# What stands for a split where it is a word in the name of a file or folder: as for `datasets`, and what is held out.
_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "heldout", "holdout"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
# The files of `push_to_hub`, whose splits may have any name.
_PUSHED = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}")


class Chosen(NamedTuple):
    """The files to read, and a description of what is skipped."""

    files: list[Path]
    left_out: list[str]


def choose_files(place: Path, split: str | None = None, subset: str | None = None) -> Chosen:
    """The data files below the folder `place` that are of `split`, by default train, and of `subset`.

    A `place` that is a file has been chosen by the user, whatever its name says. Raises MfpoError when there is no such
    split or subset, when one of several subsets has to be chosen, when the card cannot be read, and when a file is of
    another split too.
    """
    if not place.is_dir():
        file_split = split_of(place.name)
        if subset is not None or (split not in (None, file_split) and _SPLIT_OF.get(str(split)) != file_split):
            raise MfpoError(f"{place}: is one file, of split {file_split}; give the folder to choose from")
        return Chosen([place], [])
    files = data_files(place)
    subsets, default = _listed_subsets(place, files)
    subset, split = subset or default, split or "train"
    _check_choice(place, "subset", subset, subsets)
    splits = subsets[subset]
    if split not in splits and _SPLIT_OF.get(split) in splits:
        split = _SPLIT_OF[split]
    _check_choice(place, "split", split, splits)
    others = {other_split: split_files for other_split, split_files in splits.items() if other_split != split}
    for other_split, split_files in others.items():
        if both := set(splits[split]).intersection(split_files):
            where = f"in split {split} and in split {other_split}"
            raise MfpoError(f"{min(both)}: README.md lists it {where}; fix that, or give a file")
    left_out = [f"split {other_split} ({_count(split_files)})" for other_split, split_files in others.items()]
    left_out += [f"subset {other_subset}" for other_subset in subsets if other_subset != subset]
    listed = {file for each in subsets.values() for split_files in each.values() for file in split_files}
    if rest := [file for file in files if file not in listed]:
        left_out.append(f"{_count(rest, 'other ')}, such as {rest[0].relative_to(place)}")
    return Chosen(splits[split], left_out)


def _count(files: Sequence[Path], which: str = "") -> str:
    return f"{len(files)} {which}file{'s' * (len(files) > 1)}"


def _check_choice(place: Path, kind: str, name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        fault = f"has no {kind} {brief(name)}" if name else f"has several {kind}s"
        others = f" or {len(known) - 10} others" if len(known) > 10 else ""
        raise MfpoError(f"{place}: {fault}; choose {' or '.join(f'{kind}={key}' for key in [*known][:10])}{others}")


def _listed_subsets(place: Path, files: Sequence[Path]) -> tuple[dict[str, Splits], str]:
    """The subsets that the card lists and that have a file here, and the default one, "" where one has to be chosen."""
    card = place / "README.md"
    try:
        configs = _checked("configs", _front_matter(card).get("configs") or [{"config_name": "default"}], list)
        named = {_config_name(config): config for config in configs}
        subsets = {name: _listed_splits(config, place, files) for name, config in named.items()}
        marked = [name for name, config in named.items() if config.get("default")]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise MfpoError(f"{card}: its `configs` cannot be read ({first_line(error)}); fix it, or give a file") from None
    existing = {name: splits for name, splits in subsets.items() if splits}
    if not existing:
        raise MfpoError(f"{card}: none of the files listed in its `configs` exists; give the file to read")
    only = list(existing) if len(existing) == 1 else []
    return existing, next((name for name in [*marked, "default", *only] if name in existing), "")


def _config_name(config: Any) -> str:
    return str(_checked("config_name", _checked("one of them", config, dict).get("config_name"), str, int))


def _checked(name: str, value: Any, *kinds: type) -> Any:
    """`value`, a part of the card. Raises ValueError, which says its name, when it is empty or of another kind."""
    if not value or not isinstance(value, kinds):
        words = {list: "a list", dict: "a mapping", str: "a string", int: "a number"}
        raise ValueError(f"{name} is {brief(value)}, but must be {' or '.join(words[kind] for kind in kinds)}")
    return value


def _front_matter(card: Path) -> dict[str, Any]:
    text = card.read_text(encoding="utf-8-sig") if card.is_file() else ""
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    values = yaml.safe_load(match[1]) if match else {}
    return values if isinstance(values, dict) else {}


def _listed_splits(config: Mapping[str, Any], place: Path, files: Sequence[Path]) -> Splits:
    """The splits of one of the card's `configs`, those without a file here left out."""
    folder = place / _checked("data_dir", config.get("data_dir") or ".", str)
    paths = {file.relative_to(folder).as_posix(): file for file in files if file.is_relative_to(folder)}
    listed = config.get("data_files")
    if listed is None:
        return _by_name(folder, of_one_kind([*paths.values()]))
    if isinstance(listed, dict):
        listed = [{"split": split, "path": path} for split, path in listed.items()]
    elif isinstance(listed, str) or (isinstance(listed, list) and isinstance((listed or [0])[0], str)):
        listed = [{"split": "train", "path": listed}]
    splits: Splits = {}
    for item in _checked("data_files", listed, list, dict, str):
        _checked("one of data_files", item, dict)
        split = str(_checked("split", item.get("split"), str, int))
        path = _checked("path", item.get("path"), str, list)
        patterns = [_checked("path", pattern, str) for pattern in ([path] if isinstance(path, str) else path)]
        if matches := [file for name, file in paths.items() if any(_matches(name, pattern) for pattern in patterns)]:
            splits[split] = of_one_kind(matches)
    return splits


def _matches(path: str, pattern: str) -> bool:
    """Whether `path` is one of those that `pattern` stands for, where `**` also stands for folders.

    Raises ValueError for braces, which `datasets` does not read either.

    >>> [_matches("data/a/train-0.parquet", p) for p in ("data/**/train-*", "data/train-*", "**", "data/[!b-z]/*")]
    [True, False, True, True]
    """
    if re.search(r"\{.*\}", pattern):
        raise ValueError(f"path {brief(pattern)} has braces, which are not supported; list each path")
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern.removeprefix("./"))
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    regex = "".join(wild.get(part) or _literal(part) for part in parts)
    return re.fullmatch(regex, path) is not None


def _literal(part: str) -> str:
    """The regex of a text without wildcards, or of a class like `[!a-z]`."""
    return "(?!/)" * part.startswith("[") + fnmatch.translate(part).removesuffix(r"\Z")


def _by_name(folder: Path, files: Sequence[Path]) -> Splits:
    splits: Splits = {}
    for file in files:
        splits.setdefault(split_of(file.relative_to(folder).as_posix()), []).append(file)
    return splits


def split_of(path: str) -> str:
    """The split that the name of a file below a dataset's folder says; train where it says none.

    >>> [split_of(path) for path in ("data/train_prefs-00000-of-00002.parquet", "dev/part-1.jsonl", "contest.jsonl")]
    ['train_prefs', 'validation', 'train']
    >>> [split_of(path) for path in ("pairsTest.jsonl", "held_out/a.jsonl")]
    ['test', 'test']
    """
    if pushed := _PUSHED.match(path):
        return pushed[1]
    path = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", path).lower()
    path = re.sub(r"(?<![a-z])(held|hold)[-_. ]out(?![a-z])", r"\1out", path)
    for part in reversed(path.split("/")):
        for word in re.split(r"[^a-z]+", part):
            if word in _SPLIT_OF:
                return _SPLIT_OF[word]
    return "train"
