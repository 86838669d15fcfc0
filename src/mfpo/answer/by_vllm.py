"""Ask a local model through vLLM. Untested: vLLM needs a GPU."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mfpo.answer.by_endpoint import chat
from mfpo.answer.collect import Engine
from mfpo.answer.questions import Question
from mfpo.answer.settings import AnswerSettings
from mfpo.errors import MfpoError
from mfpo.hub import find_model
from mfpo.models import check_model, model_files

# vLLM forms its batches itself; the answers of so many questions are written at a time.
_CHUNK = 512


def open_vllm(model: str | Path, images: Path, settings: AnswerSettings, *, name: str | None = None) -> Engine:
    """An engine of a model in a folder or on the Hub. Raises MfpoError without vLLM, and for an adapter."""
    folder, llm = load_llm(model)
    from vllm import SamplingParams  # type: ignore[import-not-found, unused-ignore]

    sampling = SamplingParams(temperature=0.0, max_tokens=settings.max_new_tokens)

    def ask(questions: Sequence[Question]) -> Iterator[tuple[Question, dict[str, Any]]]:
        for start in range(0, len(questions), _CHUNK):
            chunk = questions[start : start + _CHUNK]
            outputs = llm.chat([chat(question, images) for question in chunk], sampling, use_tqdm=False)
            yield from zip(chunk, ({"text": output.outputs[0].text.strip()} for output in outputs), strict=True)

    how = {"strategy": "greedy", "max_new_tokens": settings.max_new_tokens, "engine": "vllm"}
    return Engine({"model": name or str(model), "decode": how, "fingerprint": model_files(folder)}, ask)


def load_llm(model: str | Path) -> tuple[Path, Any]:
    """The folder of a model and vLLM with it. Raises MfpoError without vLLM, and for an adapter."""
    folder = find_model(str(model))
    check_model(folder)
    if (folder / "adapter_config.json").is_file():
        raise MfpoError(f"{folder}: vLLM takes no adapter here; make a whole model of it with `mfpo merge`")
    try:
        from vllm import LLM  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MfpoError("vLLM is not installed; pip install 'mfpo[vllm]', on Linux with a GPU") from None
    # Only safetensors are ever loaded; the model's own generation settings may sample or penalise repetitions.
    return folder, LLM(
        str(folder), load_format="safetensors", generation_config="vllm", limit_mm_per_prompt={"image": 1}
    )
