"""Settings are frozen dataclasses: one a command, checked when made, their help text written once."""

import dataclasses
import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import yaml

from mfpo.errors import SettingError, brief

if TYPE_CHECKING:
    from mfpo.registry import Registry

T = TypeVar("T")


def about(
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Mapping[str, Any]:
    """The help text of a setting, and its bounds.

    A keyword argument of an objective, a decoder or a benchmark is a setting if annotated with this:
    `beta: Annotated[float, about("weight of a log-ratio in a reward", above=0)] = 0.1`.
    """
    return {"help": help, "least": least, "most": most, "above": above, "below": below}


def setting(default: Any, help: str, **bounds: float) -> Any:
    """A dataclass field with its default, help text and bounds (`about`)."""
    return dataclasses.field(default=default, metadata=about(help, **bounds))


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that check themselves when made. Raises SettingError with all faults."""

    def __post_init__(self) -> None:
        faults = [
            f"{field.name} is {value}, but must be {bounds}"
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None and (bounds := _broken_bounds(value, field.metadata))
        ]
        faults += self.faults()
        if faults:
            raise SettingError("; ".join(faults))

    def faults(self) -> list[str]:
        """What is wrong beyond a number out of its bounds."""
        return []


def _broken_bounds(value: Any, bounds: Mapping[str, Any]) -> str | None:
    """The bounds in words, if the number `value` is outside."""
    least, most, above, below = (bounds.get(name) for name in ("least", "most", "above", "below"))
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    is_inside = (
        (least is None or value >= least)
        and (most is None or value <= most)
        and (above is None or value > above)
        and (below is None or value < below)
    )
    if is_inside and math.isfinite(value):
        return None
    low = f"from {least:g}" if least is not None else f"above {above:g}" if above is not None else ""
    high = f"to {most:g}" if most is not None else f"below {below:g}" if below is not None else ""
    if least is not None and not high:
        return f"{least:g} or more"
    return " ".join(filter(None, (low, "to" if low and below is not None else "", high))) or "a finite number"


@dataclass(frozen=True, kw_only=True)
class ChosenSettings(Settings):
    """Settings that include those of the chosen method, decoder or corruption, named by the setting `choice`.

    `TrainSettings(method="ddpo", gamma=3)` is an instance of the subclass that `chosen("ddpo")` makes. Raises
    SettingError for a setting that only another choice has. Subclasses define `choice`, `known` (all that may be
    chosen) and `brought`.
    """

    choice = ""
    _is_chosen = False

    if TYPE_CHECKING:  # which settings there are depends on the choice
        known: ClassVar[Registry[Any]]
        former: ClassVar[Mapping[str, str]]
        refused: ClassVar[Mapping[str, str]]

        def __init__(self, **values: Any) -> None: ...
    else:
        former = {}  # names that settings had before -> their names
        refused = {}  # names that others know and that are no settings -> why

    def __new__(cls, **values: Any) -> Any:
        values = cls.renamed(values)
        chosen = cls.of(values)
        faults = [fault for name, value in values.items() if (fault := chosen.misplaced(name, value))]
        types = get_type_hints(chosen)
        faults += [_unknown(name, types) for name in values if name not in types and not chosen.misplaced(name, None)]
        if faults:
            raise SettingError("; ".join(faults))
        return super().__new__(chosen)

    def __reduce__(self) -> Any:  # a class that is made while a program runs has no name to be pickled by
        return from_mapping, (self._root(), dataclasses.asdict(self))

    @classmethod
    def _root(cls) -> type["ChosenSettings"]:
        """The class with the general settings alone."""
        return next(base for base in cls.__mro__ if not vars(base).get("_is_chosen"))

    @classmethod
    def brought(cls, name: str) -> tuple[tuple[Callable[..., Any], ...], tuple[str, ...]]:
        """The functions of `name`, whose keyword arguments are its settings, and terms, each with a `TERM_weight`.

        Raises SettingError for an unknown name.
        """
        raise NotImplementedError

    @classmethod
    def chosen(cls, name: str) -> type["ChosenSettings"]:
        """The subclass with the settings of `name`, which is its default."""
        root: Any = cls._root()
        chosen: type[ChosenSettings] = _chosen(root, name, *cls.brought(name))
        return chosen

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> type["ChosenSettings"]:
        """The class that `values` are for. Raises SettingError for an unknown choice, or another one than its own."""
        default = getattr(cls, cls.choice)
        name = values.get(cls.choice, default)
        chosen = cls.chosen(name if isinstance(name, str) else default)
        if not issubclass(chosen, cls):
            raise SettingError(f"{cls.choice} is {name}, but these settings are for {default}; make new ones")
        return chosen

    @classmethod
    def added(cls) -> dict[str, list["dataclasses.Field[Any]"]]:
        """The settings that each choice adds to the general ones, which are `dataclasses.fields` of this class."""
        general = {field.name for field in dataclasses.fields(cls)}
        fields = {name: dataclasses.fields(cls.chosen(name)) for name in cls.known}
        return {name: [field for field in every if field.name not in general] for name, every in fields.items()}

    @classmethod
    def renamed(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`values` by the names of today. Raises SettingError for a setting that has both its names."""
        twice = [
            f"{old} is now called {new}; give only one of them"
            for old, new in cls.former.items()
            if {old, new} <= {*values}
        ]
        if twice:
            raise SettingError("; ".join(twice))
        return {cls.former.get(name, name): value for name, value in values.items()}

    @classmethod
    def misplaced(cls, name: str, value: Any) -> str | None:
        """The fault if `name` is refused, or if only another choice has this setting."""
        if name in get_type_hints(cls):
            return None
        if name in cls.refused:
            return f"{name} is not a setting: {cls.refused[name]}"
        if not cls._is_added(name):
            return None
        return f"{name} is {value}, but {cls.choice} {getattr(cls, cls.choice)} has no {name}"

    @classmethod
    def is_unset(cls, name: str, value: Any) -> bool:
        """Whether it is null, in a file, for a setting that a choice adds: not set, whichever choice has it."""
        return value is None and cls._is_added(name) and type(None) not in get_args(get_type_hints(cls).get(name))

    @classmethod
    def _is_added(cls, name: str) -> bool:
        return any(field.name == name for fields in cls._root().added().values() for field in fields)


@cache
def _chosen(root: Any, name: str, functions: tuple[Callable[..., Any], ...], terms: tuple[str, ...]) -> Any:
    weights = [(f"{term}_weight", float, setting(1.0, f"weight of the {term} term", least=0)) for term in terms]
    fields = [(root.choice, str, setting(name, f"the {root.choice} that these settings belong to")), *weights]
    named: Any = dataclasses.make_dataclass(root.__name__, fields, bases=(root,), frozen=True, kw_only=True)
    chosen: Any = with_options(named, *functions)
    named._is_chosen = chosen._is_chosen = True
    make = chosen.__init__

    @wraps(make)
    def make_of_any_name(self: Any, **values: Any) -> None:
        make(self, **root.renamed(values))

    chosen.__init__ = make_of_any_name
    return chosen


def with_options(base: type[T], *functions: Callable[..., Any]) -> type[T]:
    """`base` with a setting for each keyword argument of `functions` annotated with `about`."""
    options: dict[str, tuple[str, Any, Any]] = {}
    for function in functions:
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            hint = parameter.annotation
            if isinstance(hint, str):
                hint = eval(hint, function.__globals__)  # not those of tensors, which only type checkers may know
            if get_origin(hint) is Annotated:
                kind, metadata = get_args(hint)
                options[name] = (name, kind, dataclasses.field(default=parameter.default, metadata=metadata))
    return dataclasses.make_dataclass(base.__name__, options.values(), bases=(base,), frozen=True, kw_only=True)


def options_of(settings: Any, function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments that `with_options` turned into settings, with their values."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and hasattr(settings, p.name)]
    return {name: getattr(settings, name) for name in names}


def read_values(file: Path | None, overrides: list[str], **given: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Values from a YAML file, `key=value` overrides and named values, later ones win; and where those of the file are.

    Raises SettingError when the file cannot be read or an override is none.
    """
    values: dict[str, Any] = {}
    where: dict[str, str] = {}
    if file is not None:
        try:
            loaded = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        except OSError as error:
            raise SettingError(f"{file}: cannot be read ({error.strerror}); give an existing YAML file") from None
        except (yaml.YAMLError, ValueError) as error:
            raise SettingError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
        if not isinstance(loaded, Mapping):
            raise SettingError(f"{file}: must hold `key: value` lines")
        values |= loaded
        where = dict.fromkeys(map(str, loaded), f" in {file}")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise SettingError(f"{brief(override)} is not a setting; write key=value")
        values[key] = _read_value(text)
        where.pop(key, None)
    values |= {key: value for key, value in given.items() if value is not None}
    return values, where


def read_settings(cls: type[T], file: Path | None, overrides: list[str], **given: Any) -> T:
    """Make `cls` of `read_values`.

    Raises SettingError that names every unknown key with the nearest known one, and every value of the wrong type.
    """
    return from_mapping(cls, *read_values(file, overrides, **given))


def _read_value(text: str) -> Any:
    """A value as YAML reads it; what is no YAML (`*q_proj`), or would be a list, is a text."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # the latter for a date that there is not
        return text
    return text if isinstance(value, list | dict) else value


def from_mapping(cls: type[T], values: Mapping[str, Any], where: Mapping[str, str] = {}) -> T:
    """Make the settings class `cls` from `values`, refusing unknown keys and wrong types, all at once.

    `where` says of some keys where they stand, in words that go behind the key.
    """
    chosen = None
    if issubclass(cls, ChosenSettings):
        where = {cls.former.get(key, key): place for key, place in where.items()}
        values = cls.renamed(values)
        chosen = cls.of(values)
        cls = chosen  # type: ignore[assignment]
        values = {key: value for key, value in values.items() if not chosen.is_unset(key, value)}
    types = get_type_hints(cls)
    faults = []
    accepted = {}
    for key, value in values.items():
        if chosen and (fault := chosen.misplaced(key, value)):
            faults.append(fault)
            continue
        if key not in types:
            faults.append(_unknown(key, types, where.get(key, "")))
            continue
        try:
            accepted[key] = _coerce(value, types[key])
        except (TypeError, ValueError, yaml.YAMLError):
            faults.append(f"{key}{where.get(key, '')} is {brief(value)}, but must be {_spell(types[key])}")
    if faults:
        raise SettingError("; ".join(faults))
    return cls(**accepted)


def _unknown(key: Any, known: Iterable[str], where: str = "") -> str:
    near = difflib.get_close_matches(str(key), list(known), n=1)
    hint = f", did you mean {near[0]!r}?" if near else "; `mfpo settings` lists them"
    return f"no setting is named {brief(key)}{where}{hint}"


def _coerce(value: Any, wanted: Any) -> Any:
    """`value` as `wanted`: YAML reads 5e-7 as a string and 1 as an int, both fine for a float."""
    choices = get_args(wanted)
    if get_origin(wanted) is tuple:  # 0,500,999, or a list in YAML; a single number is one of them
        parts = value if isinstance(value, list | tuple) else str(value).split(",")
        return tuple(choices[0](str(part)) for part in parts)
    if get_origin(wanted) is dict:
        return _coerce(value, dict)
    if choices and type(None) in choices:
        return None if value is None else _coerce(value, next(c for c in choices if c is not type(None)))
    if choices:
        if value not in choices:
            raise ValueError
        return value
    if wanted is float and not isinstance(value, bool):
        return float(value)
    if wanted is Path and isinstance(value, str):
        return Path(value)
    if wanted is dict and isinstance(value, str):  # {name: value}, which an override has as a text
        value = yaml.safe_load(value)
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise TypeError
    return value


def _spell(wanted: Any) -> str:
    choices = get_args(wanted)
    if not choices:
        names = {int: "a whole number", float: "a number", bool: "true or false", str: "a string", Path: "a path"}
        names[dict] = "a mapping such as {name: value}"
        return names[wanted]
    if get_origin(wanted) is tuple:
        return "numbers separated by commas"
    if get_origin(wanted) is dict:
        return "a mapping"
    if type(None) in choices:
        return _spell(next(c for c in choices if c is not type(None))) + " or null"
    return "one of " + ", ".join(map(str, choices))
