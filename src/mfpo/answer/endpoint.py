"""Ask a model behind an OpenAI-compatible endpoint questions about images, several at a time."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mfpo.answer.collect import Answered, Row, check_out, collect
from mfpo.answer.openai_client import complete, explain, longest_answer, open_client, side_by_side
from mfpo.answer.questions import read_questions
from mfpo.errors import MfpoError
from mfpo.images import load_image
from mfpo.records import IMAGE_PLACE, content_parts

if TYPE_CHECKING:
    from openai import OpenAI

# So many failures without a success between them, and the endpoint is taken to be down.
_HOPELESS = 20


def answer_by_endpoint(
    questions: Path,
    endpoint: str,
    model: str,
    images: Path,
    out: Path,
    *,
    max_new_tokens: int = 512,
    temperature: float | None = 0.0,
    concurrency: int = 8,
    retries: int = 5,
    timeout: float = 120.0,
    retry_failed: bool = False,
) -> Answered:
    """Answer each question of a file (`read_questions`) by `model`, as the `endpoint` ("http://host/v1") calls it.

    `out` gets a line an answer, as `collect` writes it; a question that fails after `retries` repetitions is kept with
    its `error`, and `retry_failed` asks just those again. `temperature` None sends none, which some reasoning models
    insist on. Raises MfpoError when the endpoint refuses key or model, or 20 questions in a row fail; the same call
    then goes on.
    """
    rows = read_questions(questions, images)
    check_out(out, retry_failed=retry_failed)
    client = open_client(endpoint, retries=retries, timeout=timeout)
    decode = longest_answer(endpoint, max_new_tokens) | ({} if temperature is None else {"temperature": temperature})
    ask = partial(_ask, client, model, decode, images, concurrency=concurrency)
    return collect(rows, ask, out, {"model": model, "decode": decode, "endpoint": endpoint}, retry_failed=retry_failed)


def chat(row: Row, images: Path) -> list[dict[str, Any]]:
    """A question in the form of OpenAI's API. An upright RGB JPEG, PNG or WebP is sent byte for byte, others as PNG.

    Neither the image's name nor its folder is sent.
    """
    data = load_image(images, row["image"])["bytes"]
    kind = Image.open(io.BytesIO(data)).get_format_mimetype()
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    shown = {"type": "image_url", "image_url": {"url": url}}
    text = row["text"] if IMAGE_PLACE in row["text"] else IMAGE_PLACE + row["text"]
    parts = [shown if part["type"] == "image" else part for part in content_parts(text)]
    return [{"role": "user", "content": parts}]


def _ask(
    client: "OpenAI", model: str, decode: Mapping[str, Any], images: Path, rows: Sequence[Row], *, concurrency: int
) -> Iterator[tuple[Row, Row]]:
    """The replies as they come; MfpoError when nothing works."""
    in_a_row = 0
    for row, reply in side_by_side(client, partial(_reply, client, model, decode, images), rows, concurrency):
        in_a_row = in_a_row + 1 if "error" in reply else 0
        if in_a_row == _HOPELESS:
            raise MfpoError(
                f"{client.base_url}: {_HOPELESS} questions in a row failed, the last with: {reply['error']}; "
                "run again to go on, the answers so far are kept"
            )
        yield row, reply


def _reply(client: "OpenAI", model: str, decode: Mapping[str, Any], images: Path, row: Row) -> tuple[Row, Row]:
    """The question with `text`, or `text` None and the `error`; MfpoError when every other would fail alike."""
    import openai

    try:
        completion = complete(client, model, chat(row, images), decode)
    except (openai.AuthenticationError, openai.NotFoundError) as error:
        fault = f"{client.base_url}: {explain(error, client)}"
    except openai.APIError as error:
        return row, {"text": None, "error": explain(error, client)}
    else:
        if completion is None:
            lacking = "the reply is no chat completion; check the address, mostly ending in /v1"
        elif completion.text is None or (not completion.text.strip() and completion.finished == "length"):
            # Empty at the limit: a reasoning model that did not come to its answer.
            lacking = f"the reply holds no text (finish_reason {completion.finished})"
        else:
            return row, {"text": completion.text.strip()}
        return row, {"text": None, "error": lacking}
    # Raised out here, so that the client's error, which holds the key, is no part of this one.
    raise MfpoError(fault)
