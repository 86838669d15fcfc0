"""A language model as the judge, behind any OpenAI-compatible endpoint.

Every verdict is kept, so that a rerun costs nothing. The key is read from OPENAI_API_KEY and is written nowhere; a
local server needs none.
"""

import hashlib
import json
import os
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import track

from mfpo.errors import MfpoError, SettingError
from mfpo.settings import setting

Messages = Sequence[Mapping[str, str]]
T = TypeVar("T")

_OPENAI = "https://api.openai.com/v1"
_TOKENS = ("prompt_tokens", "completion_tokens")
_PLACE = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Which model judges, where it is asked, and how patiently."""

    model: str = setting("", "name of the judge at the endpoint; must be given")
    endpoint: str = setting(_OPENAI, "address of an OpenAI-compatible API, mostly ending in /v1")
    concurrency: int = setting(8, "questions to the judge at a time")
    timeout: float = setting(120.0, "seconds without a byte after which a request is given up and repeated")
    retries: int = setting(6, "repetitions after 429, 5xx, a timeout or a cut connection, with growing pauses")
    attempts: int = setting(3, "times that the judge is asked before its verdict counts as unreadable")
    max_tokens: int | None = setting(None, "longest verdict; null is the benchmark's own, reasoning models need more")
    send_temperature: bool = setting(True, "send the benchmark's temperature; some reasoning models refuse any")
    prompt_price: float | None = setting(None, "price of a million prompt tokens")
    completion_price: float | None = setting(None, "price of a million completion tokens")

    def __post_init__(self) -> None:
        if not self.model:
            raise SettingError("no judge is named; give model, as the endpoint calls it")
        address = urlsplit(self.endpoint)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise SettingError(f"endpoint is {self.endpoint!r}, but must be like http://localhost:8000/v1")
        if address.username or address.password or address.query:
            # Not shown: it may hold a key.
            raise SettingError("endpoint must hold no key, name or password; put the key into OPENAI_API_KEY")
        for name, least in (("concurrency", 1), ("retries", 0), ("attempts", 1), ("max_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingError(f"{name} is {value}, but must be at least {least}")
        if not self.timeout > 0:
            raise SettingError(f"timeout is {self.timeout}, but must be above 0")


@dataclass(frozen=True)
class Verdict(Generic[T]):
    """All that the judge replied to one question, and what the first readable reply says (None: there is none)."""

    replies: tuple[str, ...]
    reading: T | None


class Judge:
    """Asks one model, several questions at a time, and keeps each reply in the JSONL file `cache`."""

    def __init__(self, settings: JudgeSettings, cache: Path) -> None:
        """Read the cache. Raises MfpoError when it is no cache, or when the `openai` package is absent."""
        try:
            from openai import OpenAI
        except ImportError:
            raise MfpoError("a judge needs the openai package; pip install 'mfpo[judge]'") from None
        self.settings = settings
        self._key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
        self._client = OpenAI(
            base_url=settings.endpoint, api_key=self._key, timeout=settings.timeout, max_retries=settings.retries
        )
        self._cache = cache
        self._replies = _read_cache(cache)
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._answered_by: set[str] = set()

    def ask(
        self,
        prompts: Mapping[str, Messages],
        read: Callable[[str], T | None],
        *,
        temperature: float,
        max_tokens: int,
    ) -> dict[str, Verdict[T]]:
        """The verdict on each of the named prompts, from the cache or from the endpoint.

        `read` gives what a reply says, or None when it cannot be read, and then the judge is asked again. Raises
        MfpoError when the endpoint fails for good; what it replied before is in the cache.
        """
        prompts = {name: _sendable(messages) for name, messages in prompts.items()}
        parameters = self._parameters(temperature, max_tokens)
        keys = {name: _hash([self.settings.model, messages, parameters]) for name, messages in prompts.items()}
        # Equal prompts have one key and are asked once.
        left = {key: name for name, key in keys.items() if self._is_open(key, read)}
        self._counts["cached"] += len(set(keys.values())) - len(left)
        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            tasks = [
                pool.submit(self._settle, key, name, prompts[name], parameters, read) for key, name in left.items()
            ]
            console = Console(stderr=True)
            for task in track(as_completed(tasks), "judging", total=len(tasks), console=console, disable=not tasks):
                task.result()
        finally:
            pool.shutdown(cancel_futures=True)
        return {name: Verdict(tuple(self._replies[key]), self._reading(key, read)) for name, key in keys.items()}

    def report(self) -> dict[str, Any]:
        """Who judged, how often it was asked, and the tokens and the cost of this run; a cost unknown is None."""
        settings, counts = self.settings, self._counts
        prices = (settings.prompt_price, settings.completion_price)
        parts = [counts[kind] * price / 1e6 for kind, price in zip(_TOKENS, prices, strict=True) if price is not None]
        names = ("asked", "asked_again", "cached", *_TOKENS, "without_token_count")
        return {
            "model": settings.model,
            "endpoint": settings.endpoint,
            "answered_by": sorted(self._answered_by),
            **{name: counts[name] for name in names},
            "cost": sum(parts) if len(parts) == 2 else None,
        }

    def _parameters(self, temperature: float, max_tokens: int) -> dict[str, Any]:
        # OpenAI's newer models refuse `max_tokens`; many other servers know nothing else.
        longest = "max_completion_tokens" if self.settings.endpoint == _OPENAI else "max_tokens"
        parameters: dict[str, Any] = {longest: self.settings.max_tokens or max_tokens}
        return parameters | ({"temperature": temperature} if self.settings.send_temperature else {})

    def _reading(self, key: str, read: Callable[[str], T | None]) -> T | None:
        readings = (read(reply) for reply in self._replies[key])
        return next((reading for reading in readings if reading is not None), None)

    def _is_open(self, key: str, read: Callable[[str], T | None]) -> bool:
        return len(self._replies[key]) < self.settings.attempts and self._reading(key, read) is None

    def _settle(
        self, key: str, name: str, messages: Messages, parameters: Mapping[str, Any], read: Callable[[str], T | None]
    ) -> None:
        """Ask until a reply can be read or `attempts` is reached."""
        broken = 0
        while self._is_open(key, read):
            if not self._request(key, name, messages, parameters):
                broken += 1
            if broken == self.settings.attempts:
                raise MfpoError(
                    f"judge, question {name}: {self.settings.endpoint} replies, but not with a chat completion; "
                    "check the address (it mostly ends in /v1), then run again: what was judged is kept"
                )

    def _request(self, key: str, name: str, messages: Messages, parameters: Mapping[str, Any]) -> bool:
        """Ask once and keep the reply; False when what came is no chat completion."""
        import openai

        try:
            response: Any = self._client.chat.completions.create(
                model=self.settings.model,
                messages=messages,  # type: ignore[arg-type]
                **parameters,
            )
        except json.JSONDecodeError:
            return False
        except openai.APIError as error:
            fault = self._explain(error)
        else:
            return self._keep(key, name, response)
        # Raised out here, so that the client's error, which holds the key, is no part of this one.
        raise MfpoError(
            f"judge, question {name}: {fault}; run again to go on, what was judged is kept in {self._cache}"
        )

    def _keep(self, key: str, name: str, response: Any) -> bool:
        """Add a reply to the cache; some servers answer 200 with an error page or without choices."""
        choices = getattr(response, "choices", None)
        message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
        if message is None:
            return False
        reply = self._without_key(str(message.content or getattr(message, "refusal", None) or ""))
        tokens = {kind: getattr(response.usage, kind, None) for kind in _TOKENS}
        kept = {"key": key, "question": name, "model": response.model, "reply": reply, **tokens}
        with self._lock:
            self._counts.update({"asked": 1, "asked_again": bool(self._replies[key])})
            self._counts.update({kind: count for kind, count in tokens.items() if isinstance(count, int)})
            self._counts["without_token_count"] += None in tokens.values()
            self._answered_by.add(str(response.model))
            self._replies[key].append(reply)
            with self._cache.open("a", encoding="utf-8") as file:
                file.write(json.dumps(kept) + "\n")
        return True

    def _explain(self, error: Any) -> str:
        """What went wrong, on one line and without the key, which some servers send back."""
        import openai

        tries = f"{self.settings.retries + 1} times"
        if isinstance(error, openai.APITimeoutError):
            return f"{self.settings.endpoint} gave no reply within {self.settings.timeout:g} s, {tries}; raise timeout"
        if isinstance(error, openai.APIConnectionError):
            return f"{self.settings.endpoint} cannot be reached or cuts the connection (tried {tries}); start it"
        status = getattr(error, "status_code", None)
        said = " ".join(self._without_key(str(error)).split())[:200]
        hint = {
            401: "set OPENAI_API_KEY to a valid key",
            404: "check model and endpoint",
            429: "wait, or lower concurrency",
        }
        return f"{self.settings.endpoint} refuses ({said})" + (f"; {hint[status]}" if status in hint else "")

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key != "none" else text


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
        given = dict(zip(self.names, values, strict=True))
        unnamed = iter(values)
        return _PLACE.sub(
            lambda match: next(unnamed) if not match.group(1) else given.get(match.group(1), match.group()), self.text
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
        raise MfpoError(f"{path}: is no UTF-8 text ({error.reason}); save it as UTF-8") from None
    except MfpoError as error:
        raise MfpoError(f"{path}: {error}") from None


def _sendable(messages: Messages) -> Messages:
    """Half of a surrogate pair, where a text was cut off, cannot be sent; it becomes a question mark."""
    return [{key: text.encode(errors="replace").decode() for key, text in message.items()} for message in messages]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_cache(path: Path) -> defaultdict[str, list[str]]:
    """The replies by key, in order; a last line that a killed run broke off is removed from the file."""
    replies: defaultdict[str, list[str]] = defaultdict(list)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(path, len(whole))
        lines = whole.decode().split("\n")[:-1]
    except (OSError, UnicodeDecodeError) as error:
        raise MfpoError(f"{path}: cannot keep the judge's verdicts ({error}); give another file") from None
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            replies[str(row["key"])].append(str(row["reply"]))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise MfpoError(f"{path}, line {number}: is no verdict that mfpo kept; give another file") from None
    return replies
