"""From questions to answers: read the questions, open the model, ask, and write answers as they arrive."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mfpo.answer.collect import Answer, check_out, collect
from mfpo.answer.openai_client import check_client
from mfpo.answer.settings import AnswerSettings, choose_engine


def answer(
    questions: str | Path | Iterable[Mapping[str, Any]],
    model: Any,
    images: str | Path,
    out: str | Path | None = None,
    settings: AnswerSettings = AnswerSettings(),
    *,
    processor: Any = None,
    name: str | None = None,
    engine: str | None = None,
    endpoint: str | None = None,
    retry_failed: bool = False,
) -> list[Answer]:
    """Answer each question of a file or list (`read_questions`); returns and writes answers as `collect` does.

    `model` is a folder, a name on the Hub, or a model in memory with its `processor`; with `endpoint`, a URL,
    its name there. `engine` is transformers, the default, or vllm. `name` is the model's name in the answers. A killed
    run with `out` resumes if questions, image folder, model and settings are the same; `retry_failed` asks only
    questions that failed at the endpoint. Raises MfpoError before asking if a question lacks a key, an id is duplicate,
    or an image cannot be read, and SettingError for settings that engine and decoder do not use.
    """
    chosen = choose_engine(settings, engine, endpoint, retry_failed=retry_failed)
    if endpoint is not None:
        check_client(endpoint)
    out = None if out is None else Path(out)
    if out is not None:
        check_out(out, retry_failed=retry_failed)
    images = Path(images)
    from mfpo.answer.questions import read_questions  # these take seconds: what can be told before has been

    asked = read_questions(Path(questions) if isinstance(questions, str) else questions, images)
    if endpoint is not None:
        from mfpo.answer.by_endpoint import open_endpoint

        opened = open_endpoint(endpoint, model, images, settings, name=name)
    elif chosen == "vllm":
        from mfpo.answer.by_vllm import open_vllm

        opened = open_vllm(model, images, settings, name=name)
    else:
        from mfpo.answer.by_transformers import open_transformers

        opened = open_transformers(model, processor, images, settings, name=name)
    return collect(asked, opened, out, retry_failed=retry_failed)
