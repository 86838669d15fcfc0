"""The command `mfpo answer`."""

from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mfpo.answer.settings import DECODER_SETTINGS
from mfpo.cli.console import ROWS_SET_ASIDE, Config, Overrides, console
from mfpo.errors import SettingError, brief
from mfpo.folders import check_readable
from mfpo.picturebook import model_folder
from mfpo.settings import read_settings


def answer(
    questions: Annotated[Path, typer.Argument(help="JSONL or JSON of LLaVA, POPE, AMBER or MMHal-Bench.")],
    model: Annotated[str, typer.Option(help="As in `train`; with --endpoint the name that the endpoint knows.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    endpoint: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible endpoint to ask.")] = None,
    engine: Annotated[str | None, typer.Option(help="transformers (the default) or vllm, for a local model.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Questions at a time; 32 by default.", min=1)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of the longest answer.", min=1)] = 512,
    concurrency: Annotated[int, typer.Option(help="Requests to the endpoint at a time.", min=1)] = 8,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask the endpoint what failed again.")] = False,
    decode: Annotated[str, typer.Option(help="greedy, vcd or opera, whose settings KEY=VALUE are.")] = "greedy",
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Ask a model questions about images. Exit status 3 says that questions failed at the endpoint.

    Example: mfpo answer questions.jsonl --model runs/mfpo/model --images photos --out answers.jsonl
    """
    check_readable(questions)
    if (endpoint or engine == "vllm") and (decode != "greedy" or overrides or config):
        raise SettingError(
            "--decode and its settings are for --engine transformers; endpoints and vLLM answer greedily"
        )
    if batch_size and (endpoint or engine == "vllm"):
        raise SettingError("--batch-size is for --engine transformers; endpoints and vLLM form batches themselves")
    if endpoint and engine:
        raise SettingError(f"--engine {engine} is for a local model, and --endpoint asks another machine; give one")
    if endpoint:
        _answer_by_endpoint(questions, endpoint, model, images, out, max_new_tokens, concurrency, retry_failed)
    if retry_failed:
        raise SettingError("--retry-failed asks an endpoint again; a local model fails at none, so leave it out")
    if engine == "vllm":
        folder = model_folder(model)
        from mfpo.answer.vllm_engine import answer_by_vllm

        count = answer_by_vllm(questions, folder, images, out, name=model, max_new_tokens=max_new_tokens)
    elif engine in (None, "transformers"):
        if decode not in DECODER_SETTINGS:
            raise SettingError(f"no decoding is named {brief(decode)}; there are {', '.join(DECODER_SETTINGS)}")
        chosen: Any = read_settings(DECODER_SETTINGS[decode], config, overrides or [])
        folder = model_folder(model)
        from mfpo.answer.generate import answer as run  # seconds of imports: a mistake is told before them

        count = run(
            questions,
            folder,
            images,
            out,
            name=model,
            strategy=decode,
            settings=chosen,
            batch_size=batch_size or 32,
            max_new_tokens=max_new_tokens,
        )
    else:
        raise SettingError(f"no engine is named {brief(engine)}; give --engine transformers or vllm")
    console.print(f"{out}: {count} answers")


def _answer_by_endpoint(
    questions: Path,
    endpoint: str,
    model: str,
    images: Path,
    out: Path,
    max_new_tokens: int,
    concurrency: int,
    retry_failed: bool,
) -> NoReturn:
    """Ask an endpoint, say how it went, and end."""
    from mfpo.answer.endpoint import answer_by_endpoint

    answered = answer_by_endpoint(
        questions,
        endpoint,
        model,
        images,
        out,
        max_new_tokens=max_new_tokens,
        concurrency=concurrency,
        retry_failed=retry_failed,
    )
    hint = "; --retry-failed asks them again" if answered.failed else ""
    console.print(f"{out}: {answered.questions} questions, of which {answered.failed} failed{hint}")
    raise typer.Exit(ROWS_SET_ASIDE if answered.failed else 0)
