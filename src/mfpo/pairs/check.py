"""Which claims of an answer are so: checkers behind one protocol, by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from mfpo.errors import MfpoError, RecordError, brief
from mfpo.registry import Registry
from mfpo.settings import options_of

if TYPE_CHECKING:
    from mfpo.pairs.ask import Asker
    from mfpo.pairs.questions import Asked
    from mfpo.pairs.settings import PairsSettings

TRUE, FALSE, UNKNOWN = "true", "false", "unknown"


class Claim(NamedTuple):
    """`text[start:end]` of an answer claims `object`; the verdict says whether it is so: TRUE, FALSE or UNKNOWN."""

    start: int
    end: int
    object: str
    verdict: str


@dataclass(frozen=True)
class Checked:
    """An answer and its claims, in the order of their places."""

    text: str
    claims: tuple[Claim, ...]

    @property
    def true(self) -> int:
        return sum(claim.verdict == TRUE for claim in self.claims)

    @property
    def false(self) -> int:
        return sum(claim.verdict == FALSE for claim in self.claims)

    @property
    def share(self) -> float | None:
        """The share of true claims among those with a verdict; None where there is none."""
        decided = self.true + self.false
        return self.true / decided if decided else None


class Shown(NamedTuple):
    """An answer to check: the question with its image, and the text."""

    asked: "Asked"
    text: str


class Checker(Protocol):
    """Checks answers. Its `provenance` tells it apart from others (`folders.provenance_of`)."""

    def __call__(self, answers: Sequence[Shown]) -> Sequence[tuple[Claim, ...] | RecordError]:
        """The claims of each answer, or why none can be checked. Raises MfpoError when no answer can."""
        ...


class Tools(NamedTuple):
    """What a checker may use: the settings, the model that is asked, a file for kept verdicts.

    `asker` opens the model, which takes long; so a checker calls it when it has something to check, not before.
    """

    settings: "PairsSettings"
    asker: "Callable[[], Asker]"
    verdicts: Path


NAMES = ("coco", "dataset", "detector", "judge")
CHECKERS: Registry[Callable[..., Checker]] = Registry("checker", "mfpo.pairs", NAMES)
CHOICES = (
    "give --check coco=FILE (COCO instances JSON, or `mfpo eval truth`'s), dataset (objects in the questions), "
    "detector, detector=MODEL, judge (the model itself), or judge=NAME judge_endpoint=URL"
)

Opener = TypeVar("Opener", bound=Callable[..., Any])


def checker(name: str) -> Callable[[Opener], Opener]:
    """Register a function or class as `--check NAME` or `--check NAME=WHERE`.

    It is called with `where`, which is empty for NAME alone, and `Tools`, and returns a `Checker`. Keyword arguments
    annotated with `mfpo.settings.about` are settings.
    """

    def add(opener: Opener) -> Opener:
        CHECKERS.add(name, opener)
        return opener

    return add


def check_choice(choice: str) -> None:
    """Raises MfpoError when `--check CHOICE` names no checker, before any is opened."""
    name, equals, where = choice.partition("=")
    if name not in CHECKERS:
        raise MfpoError(f"no check is named {brief(choice)}; {CHOICES}")
    if bool(equals) != bool(where) or (name == "coco" and not where):
        raise MfpoError(f"check {brief(choice)} lacks the file or model; {CHOICES}")
    if name == "dataset" and where:
        raise MfpoError(f"check {brief(choice)} takes nothing after dataset; {CHOICES}")
    if name == "coco" and not Path(where).is_file():
        raise MfpoError(f"{where}: no such file; {CHOICES}")


def open_checker(choice: str, asker: "Callable[[], Asker]", out: Path, settings: "PairsSettings") -> Checker:
    """The checker that `--check CHOICE` names; `asker` opens the model, which is not done yet.

    Raises MfpoError as `check_choice` and as the checker does.
    """
    check_choice(choice)
    name, _, where = choice.partition("=")
    tools = Tools(settings, asker, out.with_name(out.name + ".verdicts.jsonl"))
    return CHECKERS[name](where, tools, **options_of(settings, CHECKERS[name]))
