"""The client of an endpoint that speaks OpenAI's API: a hosted model, vLLM's server, `transformers serve`.

The key is read from OPENAI_API_KEY and never written; a local server needs none.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from multiprocessing import TimeoutError as NotYet
from multiprocessing.pool import IMapIterator, ThreadPool
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mfpo.errors import MfpoError, SettingError

if TYPE_CHECKING:
    from openai import OpenAI

Item = TypeVar("Item")
Result = TypeVar("Result")

OPENAI = "https://api.openai.com/v1"
# So many rows that fail in a row, and no other is tried.
HOPELESS = 20
_NO_KEY = "none"
# A shorter one is a dummy, whose letters stand in many a text.
_SHORTEST_KEY = 12
_HINTS = {
    401: "set OPENAI_API_KEY to a valid key",
    404: "check the model's name and the address, which usually ends in /v1",
    429: "wait, or lower concurrency",
}


# What is wrong with one request: it is too long, its image too large, or a filter forbids it.
_REFUSED = (400, 403, 413, 422)


class Completion(NamedTuple):
    """The endpoint's reply: `text` is None if it has none, `finished` is the reason why it ended."""

    text: str | None
    finished: str | None
    model: str
    usage: Any


class Failures:
    """The rows that an endpoint failed at since it last replied; `kept` says what is there for the next run."""

    def __init__(self, endpoint: str, kept: str) -> None:
        self._endpoint, self._kept = endpoint, kept
        self._rows: set[str] = set()

    def add(self, row: str, reason: object) -> None:
        """Raises MfpoError when too many failed."""
        self._rows.add(row)
        if len(self._rows) == HOPELESS:
            raise MfpoError(
                f"{self._endpoint}: {HOPELESS} questions in a row failed, the last with: {reason}; run again to "
                f"continue, {self._kept}"
            )

    def clear(self) -> None:
        self._rows.clear()


def check_endpoint(endpoint: str) -> None:
    """Raise SettingError when `endpoint` is not a URL, or contains a key or password (which is not shown)."""
    if set("@?#") & set(endpoint):
        raise SettingError("the endpoint must hold no key, name or password; put the key into OPENAI_API_KEY")
    try:
        address = urlsplit(endpoint)
        is_one = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:  # of the port, or of brackets
        is_one = False
    if not is_one or not endpoint.isprintable() or " " in endpoint:
        raise SettingError(f"the endpoint is {endpoint!r}, but must look like http://localhost:8000/v1")


def check_client(endpoint: str) -> str:
    """The key. Raises, without openai's import, which takes a second, SettingError when the endpoint or the key cannot
    be one, and MfpoError without the `openai` package.
    """
    check_endpoint(endpoint)
    if find_spec("openai") is None:
        raise MfpoError("an endpoint needs the openai package; pip install 'mfpo[judge]'")
    key = os.environ.get("OPENAI_API_KEY", "").strip() or _NO_KEY
    if not (key.isascii() and key.isprintable()):
        raise SettingError("OPENAI_API_KEY holds a character or line break that no key has; copy the key again")
    return key


def open_client(endpoint: str, *, retries: int, timeout: float) -> "OpenAI":
    """A thread-safe client of the `endpoint`.

    After 408, 409, 429, 5xx, a dropped connection or `timeout` seconds without a byte, a request is repeated, up to
    `retries` times, after the server's Retry-After or 0.5, 1, 2, ... 8 s. Raises MfpoError as `check_client`.
    """
    key = check_client(endpoint)
    from openai import OpenAI

    return OpenAI(base_url=endpoint, api_key=key, timeout=timeout, max_retries=retries)


def longest_answer(endpoint: str, tokens: int) -> dict[str, int]:
    """The request field that limits the answer: OpenAI's newer models refuse the only one that other servers know."""
    return {"max_completion_tokens" if endpoint.rstrip("/") == OPENAI else "max_tokens": tokens}


def complete(client: "OpenAI", model: str, messages: Any, parameters: Any) -> Completion | None:
    """Ask once. None if the reply is no chat completion: some servers send 200 with an error page, or without choices.

    A refusal is a text. Raises openai.APIError, which may hold the key; `explain` says it without.
    """
    try:
        response: Any = client.chat.completions.create(model=model, messages=messages, **parameters)
        choice = response.choices[0]
        text = choice.message.refusal if choice.message.content is None else choice.message.content
        completion = Completion(text, choice.finish_reason, str(response.model), response.usage)
    except (AttributeError, IndexError, TypeError, ValueError, RecursionError):  # ValueError: no JSON, or no UTF-8
        return None
    if text is None:
        return completion
    if not isinstance(text, str):
        return None
    # Half a surrogate pair cannot be written.
    return completion._replace(text=_without_key(text, client).encode(errors="replace").decode())


def explain(error: Exception, client: "OpenAI") -> str:
    """One line on what went wrong and what to do, without the key, which some servers send back."""
    import openai

    tries = f"{client.max_retries + 1} times"
    if isinstance(error, openai.APITimeoutError):
        return f"no reply within the timeout of {client.timeout:g} s, {tries}"
    if isinstance(error, openai.APIConnectionError):
        return f"could not be reached, or the connection was cut, {tries}"
    hint = _HINTS.get(getattr(error, "status_code", 0))
    return _without_key(" ".join(str(error).split()), client)[:200] + (f"; {hint}" if hint else "")


def fails_all(error: Exception) -> bool:
    """Whether every other request would fail alike: a wrong key, model or address, or a quota that is used up."""
    return getattr(error, "status_code", 0) in (401, 404) or getattr(error, "code", None) == "insufficient_quota"


def refuses_one(error: Exception) -> bool:
    """Whether the endpoint refuses this request, and may well take others."""
    return getattr(error, "status_code", 0) in _REFUSED and not fails_all(error)


def side_by_side(
    client: "OpenAI", work: Callable[[Item], Result], items: Sequence[Item], concurrency: int
) -> Iterator[Result]:
    """Yield `work(item)` for each item as it completes, `concurrency` at a time.

    The first error or Ctrl-C ends it at once: pending requests are not awaited, and as the client
    is closed, no more are sent.
    """
    errors: list[BaseException] = []

    def work_on(item: Item) -> Result:
        if errors:  # no new request, until the caller has heard of it
            raise errors[0]
        try:
            return work(item)
        except BaseException as error:
            errors.append(error)
            raise

    try:
        # Not ThreadPoolExecutor, which waits for its threads, here and when Python ends.
        with ThreadPool(concurrency) as pool:
            results = pool.imap_unordered(work_on, items)
            for _ in items:
                yield _next(results)
    finally:
        client.close()


def _next(results: "IMapIterator[Result]") -> Result:
    """The next result. Python may sleep through a Ctrl-C that comes just before a wait, so none is long."""
    while True:
        try:
            return results.next(timeout=0.5)
        except NotYet:
            continue


def _without_key(text: str, client: "OpenAI") -> str:
    return text.replace(client.api_key, "[key]") if len(client.api_key) >= _SHORTEST_KEY else text
