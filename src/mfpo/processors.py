"""The processor of a model: what it makes of texts and images, and what it would silently get wrong."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoProcessor

from mfpo.errors import MfpoError, RecordError, brief, first_line, warn_once
from mfpo.hub import find_model
from mfpo.models import check_model, not_installed, with_weights
from mfpo.records import IMAGE_PLACE, content_parts


def processor_of(model: Any, processor: Any) -> Any:
    """The processor beside the model in a folder or on the Hub, or the one that is given with a model in memory.

    Raises MfpoError when a model in memory has none, when one is given with a folder, and as `load_processor`.
    """
    if isinstance(model, str | Path):
        if processor is not None:
            raise MfpoError(f"{model}: a folder brings its processor; save yours in it, or give both in memory")
        return load_processor(model)
    if processor is None:
        raise MfpoError("a model in memory needs its processor; give processor=AutoProcessor.from_pretrained(...)")
    return processor


def load_processor(path: str | Path) -> Any:
    """The processor beside a model. Raises as `check_model`, and when there is no processor that takes images."""
    path = find_model(str(path))
    check_model(path)
    names = ("processor_config.json", "preprocessor_config.json")
    if not any((path / name).is_file() for name in names):
        raise MfpoError(f"{path}: no processor there ({' or '.join(names)}); save the model's processor beside it")
    try:
        processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    except ImportError as error:
        raise not_installed(path, "processor", error) from None
    except (OSError, ValueError) as error:
        raise MfpoError(f"{path}: its processor cannot be loaded ({first_line(error)})") from None
    return _completed(processor, path)


def _completed(processor: Any, path: Path) -> Any:
    """The processor with what older checkpoints, or those of others, have elsewhere or not at all."""
    tokenizer = processor.tokenizer
    if processor.chat_template is None:
        processor.chat_template = tokenizer.chat_template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # what it is changes nothing, as it is masked
    if hasattr(processor, "num_additional_image_tokens"):
        saved = path / "processor_config.json"
        known = json.loads(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
        if not {"patch_size", "num_additional_image_tokens"} <= known.keys():
            _complete_llava(processor, AutoConfig.from_pretrained(with_weights(path), trust_remote_code=False))
    return processor


def _complete_llava(processor: Any, config: Any) -> None:
    """How many tokens an image becomes in LLaVA, which its first processors left to the model."""
    processor.patch_size = config.vision_config.patch_size
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    with torch.device("meta"):
        tower = AutoModel.from_config(config.vision_config)
    positions = next(m.num_embeddings for name, m in tower.named_modules() if name.endswith("position_embedding"))
    # CLIP's class token, which SigLIP has not.
    processor.num_additional_image_tokens = positions - (tower.config.image_size // processor.patch_size) ** 2


def check_texts(processor: Any, texts: Sequence[str]) -> None:
    """Raises RecordError when one of `texts` holds what the processor takes for an image, a video or a sound."""
    tokens = {getattr(processor, f"{kind}_token", None) for kind in ("image", "video", "audio")}
    # Gemma 3's processor calls by that name what a template writes, and its tokenizer what stands for the image.
    tokens.add(getattr(processor.tokenizer, "image_token", None))
    if (placeholder := getattr(processor, "image_token_id", None)) is not None:
        tokens.add(processor.tokenizer.convert_ids_to_tokens(placeholder))
    for text in texts:
        for token in map(str, filter(None, tokens)):
            if token in text:
                raise RecordError(f"{brief(text)} holds {token!r}, which the model takes for an image; reword it")


def apply_template(processor: Any, turns: Sequence[dict[str, Any]], **options: Any) -> str:
    """The turns as text. Raises MfpoError without a chat template, RecordError when it cannot render the turns."""
    if processor.chat_template is None:
        raise MfpoError("the model's processor has no chat template; put its chat_template.jinja into the model folder")
    try:
        return processor.apply_chat_template(turns, tokenize=False, **options)
    except (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:  # as to the template
        raise RecordError(f"the model's chat template cannot render the conversation ({first_line(error)})") from None


def check_places(processor: Any, turns: Sequence[dict[str, Any]]) -> None:
    """Warn, once, where the model's template moves the images of `turns` before the text of their turn."""
    moved = [
        turn if isinstance(turn["content"], str) else turn | {"content": sorted(turn["content"], key=_image_first)}
        for turn in turns
    ]
    if moved != list(turns) and apply_template(processor, turns) == apply_template(processor, moved):
        warn_once("the model's chat template puts images before the text: the position of <image> in a prompt is lost")


def _image_first(part: dict[str, Any]) -> bool:
    return part["type"] != "image"


def call_processor(
    processor: Any, texts: Sequence[str], images: Sequence[Sequence[Image.Image]], **options: Any
) -> Any:
    """What the processor makes of several texts, each with its own images; none of them may have any.

    Where the template does not write the beginning of a text, the tokenizer does. Raises MfpoError when the processor
    puts images behind the text.
    """
    bos = processor.tokenizer.bos_token
    options |= {"return_tensors": "pt", "add_special_tokens": not (bos and texts[0].startswith(bos))}
    if not any(images):
        return processor(text=list(texts), images=None, **options)
    try:
        # A list of images for each text, or processors take them for images of several texts.
        batch = processor(text=list(texts), images=[list(text_images) for text_images in images], **options)
    except (ValueError, TypeError, AttributeError):
        if any(len(text_images) != 1 for text_images in images):
            raise
        # GOT-OCR takes such lists for the pages of a document.
        batch = processor(text=list(texts), images=[text_images[0] for text_images in images], **options)
    _check_end(processor, texts[0], batch["input_ids"][0].tolist())
    return batch


def _check_end(processor: Any, text: str, ids: list[int]) -> None:
    """Raises MfpoError when the last image stands behind the end of the text, as Idefics' processor puts it."""
    last = processor.tokenizer(text.rstrip(), add_special_tokens=False)["input_ids"][-1]
    image = getattr(processor, "image_token_id", None)
    if last in ids and image in ids and last != image and ids[::-1].index(image) < ids[::-1].index(last):
        kind = type(processor).__name__
        raise MfpoError(f"{kind} puts the images after the text, where the answer belongs; use another model")


def encode_questions(processor: Any, questions: Sequence[str], images: Sequence[Image.Image]) -> Any:
    """A batch to generate from: one question and one image a row, in the model's template, padded on the left.

    The image stands at the question's `<image>`, or before it. Raises as `check_texts` and `apply_template`.
    """
    check_texts(processor, [text.replace(IMAGE_PLACE, "") for text in questions])
    chats = [
        [{"role": "user", "content": content_parts(text if IMAGE_PLACE in text else IMAGE_PLACE + text)}]
        for text in questions
    ]
    for chat in chats:
        check_places(processor, chat)
    prompts = [apply_template(processor, chat, add_generation_prompt=True) for chat in chats]
    batch = call_processor(processor, prompts, [[image] for image in images], padding=True, padding_side="left")
    batch.pop("labels", None)  # PaliGemma's, with which a model would compute a loss
    return batch
