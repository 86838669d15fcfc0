"""Ask a model behind an OpenAI-compatible endpoint, several questions at a time."""

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from mfpo.answer.collect import Engine
from mfpo.answer.openai_client import (
    Failures,
    complete,
    explain,
    fails_all,
    longest_answer,
    open_client,
    side_by_side,
)
from mfpo.answer.questions import Question
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import MfpoError
from mfpo.images import load_image
from mfpo.records import IMAGE_PLACE, EncodedImage, content_parts

if TYPE_CHECKING:
    from openai import OpenAI


def open_endpoint(
    endpoint: str, model: str, images: Path, settings: AnswerSettings, *, name: str | None = None
) -> Engine:
    """An engine of `model`, as the `endpoint` ("http://host/v1") calls it.

    A question that fails after `retries` retries has an `error`. Asking raises MfpoError when the endpoint refuses
    the key or model, or 20 questions in a row fail.
    """
    client = open_client(endpoint, retries=settings.retries, timeout=settings.timeout)
    how: dict[str, Any] = longest_answer(endpoint, settings.max_new_tokens)
    if settings.temperature is not None:
        how["temperature"] = settings.temperature

    def ask(questions: Sequence[Question]) -> Iterator[tuple[Question, dict[str, Any]]]:
        failures = Failures(str(client.base_url), "the answers so far are kept")
        reply_to = partial(_reply, client, model, how, images)
        for question, reply in side_by_side(client, reply_to, questions, settings.concurrency):
            if "error" in reply:
                failures.add(question["question_id"], reply["error"])
            else:
                failures.clear()
            yield question, reply

    made_by = {"model": name or model, "decode": how, "endpoint": endpoint, "images": os.path.abspath(images)}
    return Engine(made_by, ask)


def chat(question: Question, images: Path) -> list[dict[str, Any]]:
    """A question in the form of OpenAI's API, as `chat_about`."""
    return chat_about(load_image(images, question["image"]), question["text"])


def chat_about(image: EncodedImage, text: str) -> list[dict[str, Any]]:
    """A text about an image in the form of OpenAI's API.

    An upright RGB JPEG, PNG or WebP is sent byte for byte, others as PNG. Neither the image's name nor its folder is
    sent.
    """
    data = image["bytes"]
    kind = Image.open(io.BytesIO(data)).get_format_mimetype()
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    shown = {"type": "image_url", "image_url": {"url": url}}
    text = text if IMAGE_PLACE in text else IMAGE_PLACE + text
    parts = [shown if part["type"] == "image" else part for part in content_parts(text)]
    return [{"role": "user", "content": parts}]


def _reply(
    client: "OpenAI", model: str, how: Mapping[str, Any], images: Path, question: Question
) -> tuple[Question, dict[str, Any]]:
    """The question with `text`, or `text` None and the `error`; MfpoError when every other would fail alike."""
    import openai

    try:
        completion = complete(client, model, chat(question, images), how)
    except openai.APIError as error:
        fault = explain(error, client)
        if not fails_all(error):
            return question, {"text": None, "error": fault}
    else:
        if completion is None:
            lacking = "the reply is not a chat completion; check the address, which usually ends in /v1"
        elif completion.text is None or (not completion.text.strip() and completion.finished == "length"):
            # Empty at the limit: a reasoning model that did not come to its answer.
            lacking = f"the reply holds no text (finish_reason {completion.finished})"
        else:
            return question, {"text": completion.text.strip()}
        return question, {"text": None, "error": lacking}
    # Raised out here, so that the client's error, which holds the key, is no part of this one.
    raise MfpoError(f"{client.base_url}: {fault}")
