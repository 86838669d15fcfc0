"""A benchmark is one function; `mfpo eval`, comparisons, the study and `score` all call it by its name."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from mfpo.answer.judge_settings import JudgeSettings
from mfpo.errors import SettingError
from mfpo.registry import Registry
from mfpo.settings import Settings, about, from_mapping, options_of, with_options

if TYPE_CHECKING:
    from mfpo.evaluate.figures import Figure, Tally

AllowMissing = Annotated[bool, about("count what is missing or failed instead of stopping, and score the rest")]


@dataclass(frozen=True)
class Result:
    """What a benchmark measured.

    `tallies` hold the counts behind its figures, by name ("popular.f1"); `facts` are counts and other JSON
    entries about all answers, `details` those about each; `left_out` lists the questions that are in no tally.
    """

    tallies: Mapping[str, "Tally"]
    facts: Mapping[str, Any] = field(default_factory=dict)
    details: Sequence[Mapping[str, Any]] = ()
    left_out: Collection[str] = ()

    @cached_property
    def figures(self) -> dict[str, "Figure"]:
        """The figures by name, with their intervals."""
        from mfpo.evaluate.figures import figure_of  # numpy

        return {name: figure_of(tally) for name, tally in self.tallies.items()}

    def __getitem__(self, name: str) -> float:
        """The value of a figure."""
        return self.figures[name].value

    @property
    def compared(self) -> Mapping[str, "Tally"]:
        """The tallies that `compare` takes."""
        return self.tallies

    def json(self) -> dict[str, Any]:
        """The figures with intervals ("popular.f1" is `f1` in `popular`), the facts, and the details if there are any.

        Raises MfpoError when there is nothing to score.
        """
        figures = nested({name: asdict(figure) for name, figure in self.figures.items()})
        return figures | dict(self.facts) | ({"details": list(self.details)} if self.details else {})


class PlainResult(Result):
    """A result whose JSON has its figures as numbers, and once more with intervals under `intervals`."""

    def json(self) -> dict[str, Any]:
        values = {name: figure.value for name, figure in self.figures.items()}
        intervals = {"intervals": {name: asdict(figure) for name, figure in self.figures.items()}}
        details = {"details": list(self.details)} if self.details else {}
        return values | dict(self.facts) | intervals | details


F = TypeVar("F", bound=Callable[..., Result])

BENCHMARKS: Registry[Callable[..., Result]] = Registry(
    "benchmark",
    "mfpo.evaluate",
    ["chair", "existence", "pope", "amber", "hallusionbench", "mmhal", "llava-bench", "object-halbench"],
)
# Those whose annotations hold no questions, so that only the answers tell what was asked.
ASKED_FREELY: set[str] = set()


def benchmark(name: str, *, asked_freely: bool = False) -> Callable[[F], F]:
    """Register a function as `mfpo eval NAME`, and for `score` and `compare`.

    It takes answers and annotations, each a path or the file's contents, and returns a `Result`. Its keyword
    arguments annotated with `about` are its settings, KEY=VALUE on the command line; a parameter `judge` receives
    a `Judge`, or None if that is its default. `mfpo eval NAME --help` shows its docstring, up to a paragraph that
    begins with "Example:".
    """

    def add(function: F) -> F:
        BENCHMARKS.add(name, function)
        if asked_freely:
            ASKED_FREELY.add(name)
        return function

    return add


def score(
    name: str, answers: Any, annotations: Any = None, *, judge: JudgeSettings | None = None, **settings: Any
) -> Any:
    """The `Result` of a benchmark: of its own class where it has one.

    `answers` and `annotations` are paths, or the files' contents; a judge's verdicts are cached next to the
    answer file. Raises SettingError for an unknown name, a wrong setting, or missing or unexpected annotations
    or judge, and MfpoError as the benchmark does.
    """
    answers, annotations = (Path(data) if isinstance(data, str) else data for data in (answers, annotations))
    function = BENCHMARKS[name]
    parameters = inspect.signature(function).parameters
    options = options_of(from_mapping(with_options(Settings, function), settings), function)
    if annotations is None and is_needed(function, "annotations"):
        raise SettingError(f"benchmark {name} needs annotations; give --annotations")
    if judge and "judge" not in parameters:
        raise SettingError(f"benchmark {name} takes no judge; leave out --judge")
    if judge:
        if not isinstance(answers, Path):
            raise SettingError("verdicts are cached next to the answer file; give its path, not the answers")
        from mfpo.answer.judge import Judge

        options["judge"] = Judge(judge, answers.with_name(answers.name + ".verdicts.jsonl"))
    elif is_needed(function, "judge"):
        raise SettingError(f"benchmark {name} needs a judge; give --judge")
    return function(answers, annotations, **options)


def is_needed(function: Callable[..., Any], name: str) -> bool:
    """Whether the function has a parameter `name` without a default."""
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default is parameter.empty


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by the parts of their names.

    >>> nested({"accuracy": 1, "popular.f1": 2})
    {'accuracy': 1, 'popular': {'f1': 2}}
    """
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *parents, last = name.split(".")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree
