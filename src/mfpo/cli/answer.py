"""The command `mfpo answer`."""

from pathlib import Path
from typing import Annotated

import typer

from mfpo.answer.run import answer as run
from mfpo.answer.settings import AnswerSettings
from mfpo.cli.console import ROWS_SET_ASIDE, Config, Overrides, console
from mfpo.folders import check_readable
from mfpo.picturebook import model_folder
from mfpo.settings import read_settings


def answer(
    questions: Annotated[Path, typer.Argument(help="JSONL or JSON; docs/answer.md names the benchmarks.")],
    model: Annotated[str, typer.Option(help="As in `train`; with --endpoint, the endpoint's name for the model.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.")],
    out: Annotated[Path, typer.Option(help="JSONL file to write.")],
    endpoint: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible endpoint to ask.")] = None,
    engine: Annotated[str | None, typer.Option(help="transformers (the default) or vllm, for a local model.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask failed questions again.")] = False,
    decode: Annotated[str | None, typer.Option(help="greedy (the default), vcd or opera.")] = None,
    batch_size: Annotated[int | None, typer.Option(hidden=True)] = None,
    max_new_tokens: Annotated[int | None, typer.Option(hidden=True)] = None,
    concurrency: Annotated[int | None, typer.Option(hidden=True)] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Ask a model questions about images. Exits with status 3 if questions failed at the endpoint.

    Example: mfpo answer questions.jsonl --model runs/mfpo/model --images photos --out answers.jsonl max_new_tokens=64
    """
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "concurrency": concurrency}
    settings = read_settings(AnswerSettings, config, overrides or [], decode=decode, **options)
    check_readable(questions)
    asked = model if endpoint else model_folder(model)
    answers = run(
        questions, asked, images, out, settings, name=model, engine=engine, endpoint=endpoint, retry_failed=retry_failed
    )
    failed = sum("error" in line for line in answers)
    if endpoint is None:
        console.print(f"{out}: {len(answers)} answers")
    else:
        hint = "; --retry-failed asks them again" if failed else ""
        console.print(f"{out}: {len(answers)} questions, of which {failed} failed{hint}")
    raise typer.Exit(ROWS_SET_ASIDE if failed else 0)
