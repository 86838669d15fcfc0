"""A record's turns as the text that the model reads: rendered by its own chat template, up to the end of its answer."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mfpo.errors import MfpoError, RecordError, brief
from mfpo.models import with_weights
from mfpo.processors import apply_template, call_processor, check_places, check_texts
from mfpo.records import IMAGE_PLACE, Message, content_parts, place_images

Turn = dict[str, Any]

_BLANK = Image.new("RGB", (64, 64))

# What a template leaves of a content part that it prints as it is.
_PRINTED_PART = re.compile(r"""['"]type['"]\\?:""")


def render(
    processor: Any, prompt: Sequence[Message], answers: Sequence[Sequence[Message]], *, images: int
) -> tuple[str, list[str]]:
    """The text of the prompt up to where the model begins to answer, and of each answer with its end token.

    The images stand where the prompt has `<image>`, or at the head of the first user turn. Turns without an image are
    given to a template that cannot print their content parts as plain strings. The end token is added where the
    template does not end the turn. Raises RecordError when there are places but not one for each image, when a text
    holds the model's own image token, and when the template raises an error, loses a text or rewrites the prompt behind
    an answer; MfpoError when the model has no chat template or no end token.
    """
    turns = _with_images(prompt, images)
    check_texts(processor, [text for turn in turns for text in _texts(turn)])
    check_texts(processor, [message["content"] for answer in answers for message in answer])
    ends = end_tokens(processor)
    try:
        return _rendered(processor, turns, [_as_parts(answer) for answer in answers], ends)
    except RecordError as error:
        fault = error
    try:
        return _rendered(processor, _as_strings(turns), [_as_strings(_as_parts(answer)) for answer in answers], ends)
    except RecordError as error:
        same = str(error) == str(fault)
        raise fault if same else RecordError(f"{fault}, and with plain strings: {error}") from None


def end_tokens(processor: Any) -> list[str]:
    """What ends the model's turn: the tokenizer's end token, and those at which the model beside it stops to generate.

    Raises MfpoError when there is none.
    """
    tokenizer = processor.tokenizer
    path = with_weights(Path(tokenizer.name_or_path)) / "generation_config.json"
    ids = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    ids = ids if isinstance(ids, list) else [ids] * (ids is not None)
    tokens = [tokenizer.eos_token, *tokenizer.convert_ids_to_tokens(ids)]
    if not any(tokens):
        raise MfpoError("the model's tokenizer has no end token; give it the model's eos_token")
    return [token for token in tokens if token]


def _rendered(processor: Any, turns: list[Turn], answers: list[list[Turn]], ends: list[str]) -> tuple[str, list[str]]:
    check_places(processor, turns)
    prompt = apply_template(processor, turns, add_generation_prompt=True)
    for turn in turns:
        # What the model has said before may be shortened, as templates leave out its earlier reasoning.
        if turn["role"] != "assistant":
            _end_of(turn, prompt)
    _check_images(processor, turns, prompt)
    return prompt, [_rendered_answer(processor, turns, prompt, answer, ends) for answer in answers]


def _rendered_answer(processor: Any, turns: list[Turn], prompt: str, answer: list[Turn], ends: list[str]) -> str:
    whole = apply_template(processor, turns + answer)
    if whole.startswith(prompt.rstrip()) or len(turns) == 1:
        text = _behind(prompt, whole, answer[0])
    else:  # as Pixtral's, which shows the system's turn in the last one, if that is the user's
        alone = apply_template(processor, turns[-1:], add_generation_prompt=True)
        text = _behind(alone, apply_template(processor, turns[-1:] + answer), answer[0])
    plain_text = "\n".join(text for turn in turns + answer for text in _texts(turn))
    if len(_PRINTED_PART.findall(prompt + text)) > len(_PRINTED_PART.findall(plain_text)):
        raise RecordError("the model's chat template prints the parts of a turn instead of its text")
    end = 0
    for turn in answer:
        end = _end_of(turn, text, start=end)
    ended = [text.index(token, end) + len(token) for token in ends if token in text[end:]]
    return text[: min(ended)] if ended else text.rstrip() + ends[0]


def _behind(prompt: str, whole: str, answer: Turn) -> str:
    """What the answered conversation `whole` has behind `prompt`, but for white space where the two meet."""
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    if not whole.startswith(prompt.rstrip()):
        raise RecordError(
            "the model's chat template renders a prompt differently once it is answered "
            f"({brief(prompt)} is not how {brief(whole)} begins); use a template that only appends"
        )
    rest, text = whole[len(prompt.rstrip()) :], _texts(answer)[0]
    leading_space = text[: len(text) - len(text.lstrip())]
    bare = rest.lstrip()
    return leading_space + bare if rest.endswith(leading_space + bare) else bare


def _end_of(turn: Turn, rendered: str, start: int = 0) -> int:
    """Where the turn's texts end in what was rendered, with white space as the template has it."""
    for text in _texts(turn):
        match = re.compile(r"\s*".join(map(re.escape, text.split()))).search(rendered, start)
        if match is None:
            raise RecordError(f"the model's chat template loses the text {brief(text)} of a turn by {turn['role']}")
        start = match.end()
    return start


def _check_images(processor: Any, turns: list[Turn], prompt: str) -> None:
    token = getattr(processor, "image_token", None)
    shown = [turn for turn in turns if not isinstance(turn["content"], str)]
    images = sum(part["type"] == "image" for turn in shown for part in turn["content"])
    if not images or (token and str(token) in prompt):
        return
    without = [
        turn | {"content": [part for part in turn["content"] if part["type"] != "image"]} if turn in shown else turn
        for turn in turns
    ]
    if apply_template(processor, without, add_generation_prompt=True) != prompt:
        return
    if not _adds_image(processor, prompt, 1):
        raise MfpoError("the model's chat template leaves out the image; give the model one that shows it")
    if images > 1 and not _adds_image(processor, prompt, images):
        raise RecordError(f"the model's processor shows only one image per prompt, and this one has {images}")


def _adds_image(processor: Any, prompt: str, number: int) -> bool:
    """Whether the processor puts the image of that number before the text by itself, as BLIP-2's does the first."""
    images = [[_BLANK] * count for count in (number - 1, number)]
    try:
        without, shown = (call_processor(processor, [prompt], [blanks])["input_ids"] for blanks in images)
        return not torch.equal(without, shown)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RuntimeError):  # as to the processor
        return False


def _with_images(messages: Sequence[Message], images: int) -> list[Turn]:
    if any(IMAGE_PLACE in message["content"] for message in messages):
        messages = place_images(messages, images)
    if any(IMAGE_PLACE in message["content"] for message in messages):
        return [{"role": m["role"], "content": content_parts(m["content"])} for m in messages]
    turns = _as_parts(messages)
    if images:
        first_user = next((turn for turn in turns if turn["role"] == "user"), None)
        if first_user is None:
            raise RecordError("column 'prompt' has no user turn to show the image in")
        first_user["content"] = [{"type": "image"}] * images + list(first_user["content"])
    return turns


def _as_parts(messages: Sequence[Message]) -> list[Turn]:
    """Messages with content parts, which nearly every template of a vision-language model takes."""
    return [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def _as_strings(turns: Sequence[Turn]) -> list[Turn]:
    """The turns without an image as plain strings."""
    has_image = [any(part["type"] == "image" for part in turn["content"]) for turn in turns]
    return [
        turn if seen else turn | {"content": "".join(_texts(turn))} for turn, seen in zip(turns, has_image, strict=True)
    ]


def _texts(turn: Turn) -> list[str]:
    content = turn["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
