"""Settings are frozen dataclasses: one a stage, checked when made, their help text written once."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import yaml

from mfpo.errors import SettingError, brief

T = TypeVar("T")


def setting(default: Any, help: str) -> Any:
    """A dataclass field with its default and the line that `--help` and the docs show."""
    return dataclasses.field(default=default, metadata={"help": help})


def read_settings(cls: type[T], file: Path | None, overrides: list[str], **given: Any) -> T:
    """Make `cls` from a YAML file, `key=value` overrides and named values; later ones win.

    Raises SettingError that names every unknown key with the nearest known one, and every value of the wrong type.
    """
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise SettingError(f"{file}: cannot be read ({error.strerror}); give an existing YAML file") from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(loaded, Mapping):
            raise SettingError(f"{file}: must hold `key: value` lines")
        values |= loaded
        where = dict.fromkeys(map(str, loaded), f" in {file}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise SettingError(f"{brief(override)} is no setting; write key=value")
        values[key] = _read_value(text)
        where.pop(key, None)
    values |= {key: value for key, value in given.items() if value is not None}
    return from_mapping(cls, values, where)


def _read_value(text: str) -> Any:
    """A value as YAML reads it; what is no YAML (`*q_proj`), or would be a list, is a text."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return text if isinstance(value, list | dict) else value


def from_mapping(cls: type[T], values: Mapping[str, Any], where: Mapping[str, str] = {}) -> T:
    """Make the settings class `cls` from `values`, refusing unknown keys and wrong types, all at once.

    `where` says of some keys where they stand, in words that go behind the key.
    """
    types = get_type_hints(cls)
    faults = []
    accepted = {}
    for key, value in values.items():
        if key not in types:
            near = difflib.get_close_matches(str(key), types, n=1)
            hint = f", did you mean {near[0]!r}?" if near else "; `mfpo settings` lists them"
            faults.append(f"no setting is named {brief(key)}{where.get(key, '')}{hint}")
            continue
        try:
            accepted[key] = _coerce(value, types[key])
        except (TypeError, ValueError):
            faults.append(f"{key}{where.get(key, '')} is {brief(value)}, but must be {_spell(types[key])}")
    if faults:
        raise SettingError("; ".join(faults))
    return cls(**accepted)


def _coerce(value: Any, wanted: Any) -> Any:
    """`value` as `wanted`: YAML reads 5e-7 as a string and 1 as an int, both fine for a float."""
    choices = get_args(wanted)
    if choices and type(None) in choices:
        return None if value is None else _coerce(value, next(c for c in choices if c is not type(None)))
    if choices:
        if value not in choices:
            raise ValueError
        return value
    if wanted is float and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise TypeError
    return value


def _spell(wanted: Any) -> str:
    choices = get_args(wanted)
    if not choices:
        return {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}[wanted.__name__]
    if type(None) in choices:
        return _spell(next(c for c in choices if c is not type(None))) + " or null"
    return "one of " + ", ".join(map(str, choices))
