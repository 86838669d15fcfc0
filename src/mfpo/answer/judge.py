"""A language model as the judge, behind any OpenAI-compatible endpoint.

Every verdict is cached, so that a rerun costs nothing.
"""

import hashlib
import json
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar

from rich.console import Console
from rich.progress import Progress

from mfpo.answer.judge_settings import JudgeSettings
from mfpo.answer.openai_client import (
    Completion,
    Failures,
    complete,
    explain,
    longest_answer,
    open_client,
    refuses_one,
    side_by_side,
)
from mfpo.answer.replies import without_thoughts
from mfpo.errors import MfpoError, RecordError
from mfpo.files import some
from mfpo.folders import lock

if TYPE_CHECKING:
    from openai import OpenAI

Messages = Sequence[Mapping[str, Any]]
T = TypeVar("T")

_TOKENS = ("prompt_tokens", "completion_tokens")
_START = b'{"key": "'  # of a line of the cache
_PLACE = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class Verdict(Generic[T]):
    """All that the judge replied to one question, and what the first readable reply says (None: there is none).

    `fault` is why the endpoint refused the question, if it did.
    """

    replies: tuple[str, ...]
    reading: T | None
    fault: str | None = None


class Judge:
    """Asks one model, several questions at a time, and keeps each reply in the JSONL file `cache`."""

    _file: IO[bytes]
    _replies: defaultdict[str, list[str]]

    def __init__(self, settings: JudgeSettings, cache: Path) -> None:
        """`cache` is opened when there is something to ask."""
        self.settings = settings
        self._cache = cache
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._answered_by: set[str] = set()
        self._refused: dict[str, str] = {}
        self._failures = Failures(settings.endpoint, f"the verdicts so far are kept in {cache}")

    def ask(
        self,
        prompts: Mapping[str, Messages],
        read: Callable[[str], T | None],
        *,
        temperature: float,
        max_tokens: int,
        rows: Mapping[str, str] | None = None,
    ) -> dict[str, Verdict[T]]:
        """The verdict on each of the named prompts, from the cache or from the endpoint.

        `read` gives what a reply says, without the judge's thoughts, or None when it cannot be read, and then the judge
        is asked again. A prompt that the endpoint refuses has a `fault`; `rows` says which prompts belong together.
        Raises MfpoError when the cache is none or another run writes it, as `open_client`, when the endpoint fails for
        good, and when it refuses all prompts, or those of 20 rows in a row; what it replied before is in the cache.
        """
        settings = self.settings
        prompts = {name: _sendable(messages) for name, messages in prompts.items()}
        parameters: dict[str, Any] = {**longest_answer(settings.endpoint, settings.max_tokens or max_tokens)}
        parameters |= {"temperature": temperature} if settings.send_temperature else {}
        keys = {name: _hash([settings.model, messages, parameters]) for name, messages in prompts.items()}
        refused: dict[str, str] = {}
        with _open_cache(self._cache) as self._file:
            self._replies = _read_cache(self._file, self._cache)
            # Equal prompts have one key and are asked once.
            left = {key: name for name, key in keys.items() if self._is_open(key, read)}
            self._counts["cached"] += len(set(keys.values())) - len(left)
            if left:
                client = open_client(settings.endpoint, retries=settings.retries, timeout=settings.timeout)
                settle = partial(self._settle, client, parameters, read)
                asked = [(key, name, prompts[name]) for key, name in left.items()]
                settled = side_by_side(client, settle, asked, settings.concurrency)
                with Progress(console=Console(stderr=True)) as bar:  # ends with an error, too
                    refused = self._refusals(bar.track(settled, len(left), description="judging"), rows or {})
        self._refused |= {name: refused[key] for name, key in keys.items() if key in refused}
        replied = (self._replies[key] for key in set(keys.values()))
        self._counts["thinking"] += sum(any(without_thoughts(reply) != reply for reply in each) for each in replied)
        return {
            name: Verdict(tuple(self._replies[key]), self._reading(key, read), refused.get(key))
            for name, key in keys.items()
        }

    def report(self) -> dict[str, Any]:
        """Who judged, how often it was asked, and the tokens and the cost of this run; a cost unknown is None.

        `thinking` counts the verdicts in which the judge also thinks, and `refused` holds the questions that it refuses
        with the reason, if there are any.
        """
        settings, counts = self.settings, self._counts
        prices = (settings.prompt_price, settings.completion_price)
        parts = [counts[kind] * price / 1e6 for kind, price in zip(_TOKENS, prices, strict=True) if price is not None]
        names = ("asked", "asked_again", "cached", *_TOKENS, "without_token_count")
        return {
            "model": settings.model,
            "endpoint": settings.endpoint,
            "answered_by": sorted(self._answered_by),
            **{name: counts[name] for name in names},
            **({"thinking": counts["thinking"]} if counts["thinking"] else {}),
            **({"refused": self._refused} if self._refused else {}),
            "cost": sum(parts) if len(parts) == 2 else None,
        }

    def _refusals(self, settled: Iterable[tuple[str, str, str | None]], rows: Mapping[str, str]) -> dict[str, str]:
        """Why some of the questions are refused, by key, when all are settled."""
        refused = {}
        for key, name, fault in settled:
            if fault is None:
                self._failures.clear()
                continue
            refused[key] = fault
            self._failures.add(rows.get(name, name), fault)
        if refused and not (self._counts["asked"] or self._counts["cached"]):
            _, fault = refused.popitem()
            raise MfpoError(
                f"judge: {self.settings.endpoint} refuses all questions, the last with: {fault}; check the judge's "
                "settings, such as send_temperature and max_tokens"
            )
        return refused

    def _reading(self, key: str, read: Callable[[str], T | None]) -> T | None:
        readings = (read(without_thoughts(reply)) for reply in self._replies[key])
        return next((reading for reading in readings if reading is not None), None)

    def _is_open(self, key: str, read: Callable[[str], T | None]) -> bool:
        return len(self._replies[key]) < self.settings.attempts and self._reading(key, read) is None

    def _settle(
        self,
        client: "OpenAI",
        parameters: Mapping[str, Any],
        read: Callable[[str], T | None],
        asked: tuple[str, str, Messages],
    ) -> tuple[str, str, str | None]:
        """Ask until a reply can be read or `attempts` is reached; returns key, name, and why it is refused, if so."""
        key, name, messages = asked
        broken = 0
        while self._is_open(key, read):
            completion = self._request(client, name, messages, parameters)
            if isinstance(completion, RecordError):
                return key, name, str(completion)
            if completion:
                self._keep(key, name, completion)
                continue
            broken += 1
            if broken == self.settings.attempts:
                raise MfpoError(
                    f"judge, question {some([name])}: {self.settings.endpoint} replies, but not with a chat completion"
                    "; check the address (it usually ends in /v1), then run again; the verdicts so far are kept"
                )
        return key, name, None

    def _request(
        self, client: "OpenAI", name: str, messages: Messages, parameters: Mapping[str, Any]
    ) -> Completion | RecordError | None:
        import openai

        try:
            return complete(client, self.settings.model, messages, parameters)
        except openai.APIError as error:
            fault = explain(error, client)
            if refuses_one(error):
                return RecordError(fault)
        # Raised out here, so that the client's error, which holds the key, is no part of this one.
        raise MfpoError(
            f"judge, question {some([name])}: {self.settings.endpoint}: {fault}; run again to continue, the verdicts "
            f"so far are kept in {self._cache}"
        )

    def _keep(self, key: str, name: str, completion: Completion) -> None:
        """Add a reply to the cache."""
        reply = completion.text or ""
        tokens = {kind: getattr(completion.usage, kind, None) for kind in _TOKENS}
        row = {"key": key, "question": name, "model": completion.model, "reply": reply, **tokens}
        with self._lock:
            self._counts.update({"asked": 1, "asked_again": bool(self._replies[key])})
            self._counts.update({kind: count for kind, count in tokens.items() if isinstance(count, int)})
            self._counts["without_token_count"] += None in tokens.values()
            self._answered_by.add(completion.model)
            self._replies[key].append(reply)
            self._file.write(json.dumps(row).encode() + b"\n")
            self._file.flush()


@dataclass(frozen=True)
class Template:
    """A prompt with a place `{name}` for each of `names`, or as many `{}` in the order of `names`."""

    text: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        places = [name for name in _PLACE.findall(self.text) if name in (*self.names, "")]
        if sorted(places) != sorted(self.names) and places != [""] * len(self.names):
            wanted = ", ".join(f"{{{name}}}" for name in self.names)
            raise MfpoError(f"the judge's template must hold each of {wanted} once, or {{}} {len(self.names)} times")

    def fill(self, *values: str) -> str:
        """The prompt with `values` in the order of `names`; braces in a value stay as they are.

        >>> Template("{answer}, said {who}.", ("who", "answer")).fill("Ann", "{who}?")
        '{who}?, said Ann.'
        """
        values_by_name = dict(zip(self.names, values, strict=True))
        unnamed = iter(values)
        return _PLACE.sub(
            lambda match: next(unnamed) if not match.group(1) else values_by_name.get(match.group(1), match.group()),
            self.text,
        )

    def is_the_one(self, sha256: str) -> bool:
        """Whether this is the published text with that hash, apart from line ends and outer blanks."""
        return hashlib.sha256(self.text.strip().encode()).hexdigest() == sha256


def read_template(path: Path, names: tuple[str, ...]) -> Template:
    """Read a template file. Raises MfpoError when it is absent, no text, or lacks a place."""
    try:
        return Template(path.read_text(encoding="utf-8-sig"), names)
    except OSError as error:
        raise MfpoError(f"{path}: cannot be read ({error.strerror or error}); give an existing file") from None
    except UnicodeDecodeError as error:
        raise MfpoError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    except MfpoError as error:
        raise MfpoError(f"{path}: {error}") from None


def _sendable(messages: Messages) -> Messages:
    """Half of a surrogate pair, where a text was cut off, cannot be sent; it becomes a question mark."""
    sendable: Messages = json.loads(json.dumps(messages, ensure_ascii=False).encode(errors="replace"))
    return sendable


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _open_cache(path: Path) -> IO[bytes]:
    """The cache to read and add to, kept from other runs until it is closed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    except OSError as error:
        raise MfpoError(f"{path}: cannot save the judge's verdicts ({error}); give another file") from None
    try:
        lock(file.fileno(), path)
    except MfpoError:
        file.close()
        raise
    return file


def _read_cache(file: IO[bytes], path: Path) -> defaultdict[str, list[str]]:
    """The replies by key, in order; a last line that a killed run broke off is removed from the file."""
    replies: defaultdict[str, list[str]] = defaultdict(list)
    file.seek(0)
    *lines, broken_off = file.read().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            replies[str(row["key"])].append(str(row["reply"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise MfpoError(f"{path}, line {number}: is not a verdict cached by mfpo; give another file") from None
    # Only what a verdict begins with is taken away, in case that this is another file.
    if broken_off[: len(_START)] != _START[: len(broken_off)]:
        raise MfpoError(f"{path}, line {len(lines) + 1}: is not a verdict cached by mfpo; give another file")
    file.truncate(file.tell() - len(broken_off))
    return replies
