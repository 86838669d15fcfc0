"""Ask a local model questions about images by vLLM. Not run yet: vLLM needs a GPU."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mfpo.answer.collect import Row, check_out, collect
from mfpo.answer.endpoint import chat
from mfpo.answer.questions import read_questions
from mfpo.errors import MfpoError
from mfpo.models import check_model, model_files

# vLLM forms its batches itself; the answers of so many questions are written at a time.
_CHUNK = 512


def answer_by_vllm(
    questions: Path, model_path: Path, images: Path, out: Path, *, name: str | None = None, max_new_tokens: int = 512
) -> int:
    """As `mfpo.answer.generate.answer`. Raises MfpoError also without vLLM, and for an adapter."""
    rows = read_questions(questions, images)
    check_out(out)
    check_model(model_path)
    if (model_path / "adapter_config.json").is_file():
        raise MfpoError(f"{model_path}: vLLM takes no adapter here; make a whole model of it with `mfpo merge`")
    try:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise MfpoError("vLLM is not installed; pip install 'mfpo[vllm]', on Linux with a GPU") from None
    # Only safetensors are ever loaded; the model's own generation settings may sample or penalise repetitions.
    llm: Any = LLM(
        str(model_path), load_format="safetensors", generation_config="vllm", limit_mm_per_prompt={"image": 1}
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=max_new_tokens)

    def ask(left: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
        for start in range(0, len(left), _CHUNK):
            chunk = left[start : start + _CHUNK]
            outputs = llm.chat([chat(row, images) for row in chunk], sampling, use_tqdm=False)
            yield from zip(chunk, ({"text": output.outputs[0].text.strip()} for output in outputs), strict=True)

    decode = {"strategy": "greedy", "max_new_tokens": max_new_tokens, "engine": "vllm"}
    made_by = {"model": name or str(model_path), "decode": decode, "fingerprint": model_files(model_path)}
    return collect(rows, ask, out, made_by).questions
