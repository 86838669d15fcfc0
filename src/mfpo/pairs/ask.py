"""Several answers of one model to each question: by transformers, vLLM or an endpoint."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mfpo.answer.sample import Sampled, sample
from mfpo.build.steps import generator
from mfpo.errors import MfpoError, RecordError
from mfpo.pairs.questions import Asked

if TYPE_CHECKING:
    from mfpo.pairs.settings import PairsSettings


class Asker(NamedTuple):
    """The model to ask. `ask` gives each question's answers, the greedy one first, or why there are none.

    `model` and `processor` are None where the model is on another machine.
    """

    made_by: dict[str, Any]
    ask: Callable[[Sequence[Asked]], list[list[Sampled] | RecordError]]
    model: Any = None
    processor: Any = None


def open_asker(
    model: Any,
    settings: "PairsSettings",
    *,
    processor: Any = None,
    engine: str | None = None,
    endpoint: str | None = None,
) -> Asker:
    """The asker of a model in a folder, on the Hub, in memory, or behind an `endpoint`.

    Raises MfpoError when there is none, and for one in memory without its processor.
    """
    if endpoint is not None:
        return _open_endpoint(str(model), endpoint, settings)
    if engine == "vllm":
        return _open_vllm(model, settings)
    from mfpo.hub import find_model
    from mfpo.models import load_model, model_files
    from mfpo.processors import processor_of

    processor = processor_of(model, processor)
    name = str(model) if isinstance(model, str | Path) else "in memory"
    model = find_model(str(model)) if isinstance(model, str | Path) else model
    made_by = {"model": name, "fingerprint": model_files(model, processor)}
    model = load_model(model) if isinstance(model, Path) else model.eval()
    return Asker(made_by, partial(_ask_transformers, model, processor, settings), model, processor)


def _ask_transformers(
    model: Any, processor: Any, settings: "PairsSettings", asked: Sequence[Asked]
) -> list[list[Sampled] | RecordError]:
    import torch

    from mfpo.answer.questions import Question
    from mfpo.answer.together import parts
    from mfpo.images import decode_image

    answers: list[list[Sampled] | RecordError] = []
    for start in range(0, len(asked), settings.batch_size):
        some = asked[start : start + settings.batch_size]
        questions = [
            Question(question_id=question.id, image=question.image_name, text=question.text) for question in some
        ]
        images = [decode_image(question.image) for question in some]
        try:
            for part in parts(model, processor, [question.text for question in some], images):
                answers += sample(
                    model,
                    processor,
                    questions[part],
                    images[part],
                    samples=settings.samples,
                    temperature=settings.temperature,
                    max_new_tokens=settings.max_new_tokens,
                    seed=settings.seed,
                )
        except torch.OutOfMemoryError:
            raise MfpoError(
                f"no GPU memory for {len(some)} questions with {settings.samples + 1} answers each; give a smaller "
                "batch_size (the complete shards so far are kept)"
            ) from None
    return answers


def _seeds(settings: "PairsSettings", id: str) -> list[int]:
    """A seed for each sampled answer, which neither order nor batches change."""
    return [int(seed) for seed in generator(settings.seed, id).integers(0, 2**31, settings.samples)]


def _open_vllm(model: Any, settings: "PairsSettings") -> Asker:
    """Run with a stand-in for vLLM only. vLLM's prefix cache computes a prompt and its image once for all answers."""
    from mfpo.answer.by_endpoint import chat_about
    from mfpo.answer.by_vllm import load_llm
    from mfpo.models import model_files

    folder, llm, adapter = load_llm(model)
    from vllm import SamplingParams  # type: ignore[import-not-found, unused-ignore]

    def ask(asked: Sequence[Asked]) -> list[list[Sampled] | RecordError]:
        chats, how = [], []
        for question in asked:
            seeds: list[int | None] = [None, *_seeds(settings, question.id)]
            chats += [chat_about(question.image, question.text)] * len(seeds)
            for seed in seeds:
                temperature = 0.0 if seed is None else settings.temperature
                how.append(SamplingParams(temperature=temperature, seed=seed, max_tokens=settings.max_new_tokens))
        outputs = [output.outputs[0] for output in llm.chat(chats, how, use_tqdm=False, lora_request=adapter)]
        answers = [Sampled(output.text.strip(), output.finish_reason == "length") for output in outputs]
        count = settings.samples + 1
        return [answers[start : start + count] for start in range(0, len(answers), count)]

    return Asker({"model": str(model), "fingerprint": model_files(folder), "engine": "vllm"}, ask)


def _open_endpoint(model: str, endpoint: str, settings: "PairsSettings") -> Asker:
    """A question of which a request fails, after `retries`, has no answers but the reason.

    Asking raises MfpoError when 20 questions in a row fail.
    """
    from mfpo.answer.openai_client import Failures, check_endpoint, open_client, side_by_side

    check_endpoint(endpoint)
    failures = Failures(endpoint, "the complete shards so far are kept")

    def ask(asked: Sequence[Asked]) -> list[list[Sampled] | RecordError]:
        # Opened each time, as `side_by_side` closes it.
        client = open_client(endpoint, retries=settings.retries, timeout=settings.timeout)
        wanted = [
            (number, place, seed)
            for number, question in enumerate(asked)
            for place, seed in enumerate([None, *_seeds(settings, question.id)])
        ]
        reply = partial(_reply, client, model, endpoint, settings, asked)
        answers: dict[tuple[int, int], Sampled | RecordError] = {}
        for number, place, answer in side_by_side(client, reply, wanted, settings.concurrency):
            answers[number, place] = answer
            if isinstance(answer, RecordError):
                failures.add(asked[number].id, answer)
            else:
                failures.clear()
        rows = [[answers[number, place] for place in range(settings.samples + 1)] for number in range(len(asked))]
        faults = [next((answer for answer in row if isinstance(answer, RecordError)), None) for row in rows]
        return [fault or row for fault, row in zip(faults, rows, strict=True)]  # type: ignore[misc]

    return Asker({"model": model, "endpoint": endpoint}, ask)


def _reply(
    client: Any,
    model: str,
    endpoint: str,
    settings: "PairsSettings",
    asked: Sequence[Asked],
    wanted: tuple[int, int, Any],
) -> tuple[int, int, Sampled | RecordError]:
    import openai

    from mfpo.answer.by_endpoint import chat_about
    from mfpo.answer.openai_client import complete, explain, fails_all, longest_answer

    number, place, seed = wanted
    how: dict[str, Any] = {"temperature": 0.0} if seed is None else {"temperature": settings.temperature, "seed": seed}
    how |= longest_answer(endpoint, settings.max_new_tokens)
    try:
        completion = complete(client, model, chat_about(asked[number].image, asked[number].text), how)
    except openai.APIError as error:
        fault = explain(error, client)
        if not fails_all(error):
            return number, place, RecordError(f"the endpoint failed ({fault})")
    else:
        if completion is None:
            return number, place, RecordError("the endpoint failed (the reply is not a chat completion)")
        return number, place, Sampled((completion.text or "").strip(), completion.finished == "length")
    # Raised out here, so that the client's error, which holds the key, is no part of this one.
    raise MfpoError(f"{client.base_url}: {fault}")
