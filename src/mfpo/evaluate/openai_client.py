"""The client of an endpoint that speaks OpenAI's API: a hosted model, vLLM's server, `transformers serve`."""

import os
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mfpo.errors import MfpoError, SettingError

if TYPE_CHECKING:
    from openai import OpenAI

OPENAI = "https://api.openai.com/v1"
_NO_KEY = "none"


def open_client(endpoint: str, *, retries: int, timeout: float) -> "OpenAI":
    """A client of the `endpoint`, which threads may share; the key is OPENAI_API_KEY, and a local server needs none.

    A request that meets 408, 409, 429, 5xx, a cut connection or no byte within `timeout` seconds is sent again, up to
    `retries` times, after the server's Retry-After or 0.5, 1, 2, ... 8 s. Raises SettingError when the endpoint is no
    URL or holds a secret, and MfpoError without the `openai` package.
    """
    address = urlsplit(endpoint)
    if address.username or address.password or address.query:
        # Not shown: it may hold a key.
        raise SettingError("the endpoint must hold no key, name or password; put the key into OPENAI_API_KEY")
    if address.scheme not in ("http", "https") or not address.hostname:
        raise SettingError(f"the endpoint is {endpoint!r}, but must be like http://localhost:8000/v1")
    try:
        from openai import OpenAI
    except ImportError:
        raise MfpoError("an endpoint needs the openai package; pip install 'mfpo[judge]'") from None
    key = os.environ.get("OPENAI_API_KEY", "").strip() or _NO_KEY
    return OpenAI(base_url=endpoint, api_key=key, timeout=timeout, max_retries=retries)


def longest_answer(endpoint: str, tokens: int) -> dict[str, int]:
    """The field of a request that limits the answer: OpenAI's newer models refuse what other servers only know."""
    return {"max_completion_tokens" if endpoint == OPENAI else "max_tokens": tokens}


def explain(error: Exception, client: "OpenAI") -> str:
    """What went wrong, on one line and without the key, which some servers send back."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return f"no reply within the timeout, {client.max_retries + 1} times"
    if isinstance(error, openai.APIConnectionError):
        return f"not reached, or the connection was cut, {client.max_retries + 1} times"
    return without_key(" ".join(str(error).split()), client)[:200]


def without_key(text: str, client: "OpenAI") -> str:
    """`text` with the key struck out."""
    return text if client.api_key == _NO_KEY else text.replace(client.api_key, "[key]")
