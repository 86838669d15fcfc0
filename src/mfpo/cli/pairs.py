"""The command `mfpo pairs`."""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer

from mfpo.answer.openai_client import check_client
from mfpo.cli.console import Config, Model, Out, Overrides, console, counted, say_set_aside
from mfpo.errors import MfpoError, SettingError, brief
from mfpo.folders import check_new
from mfpo.pairs.check import CHECKERS, check_choice, open_checker
from mfpo.pairs.settings import PairsSettings, check_use
from mfpo.picturebook import model_folder, scene_count
from mfpo.settings import read_settings, with_options

_FORMATS = ("parquet", "trl", "ms-swift")

Source = Annotated[
    str,
    typer.Argument(help="Folder of images, JSONL or JSON of questions, `picturebook:N` or `picturebook-context:N`."),
]


def pairs(
    source: Source,
    model: Model,
    out: Out,
    check: Annotated[
        str, typer.Option(help="coco=FILE, dataset, detector[=MODEL] or judge[=NAME]; docs/pairs.md.")
    ] = "detector",
    images: Annotated[Path | None, typer.Option(help="Folder of the images of the questions.")] = None,
    engine: Annotated[str | None, typer.Option(help="transformers (the default) or vllm, for a local model.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="URL of an OpenAI-compatible endpoint to ask.")] = None,
    format: Annotated[str, typer.Option(help="parquet, or JSONL as trl or ms-swift reads it.")] = "parquet",
    pairing: Annotated[str | None, typer.Option(hidden=True)] = None,
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
    config: Config = None,
    overrides: Overrides = None,
) -> None:
    """Make preference pairs of a model's own answers: sample several, check what they claim, pair good with bad.

    Exits with status 3 if questions could not be asked; the others are written.

    Example: mfpo pairs photos --model llava-hf/llava-1.5-7b-hf --check detector --out data/own pairing=corrected
    """
    check_choice(check)
    cls = with_options(PairsSettings, CHECKERS[check.partition("=")[0]])
    settings: Any = read_settings(cls, config, overrides or [], pairing=pairing, seed=seed)
    check_use(settings, check, engine, endpoint)
    if endpoint is not None:
        check_client(endpoint)
    _check_arguments(source, format)
    check_new(out)
    questions = _open_questions(source, images, settings.seed)
    named = model if endpoint else model_folder(model)

    @cache
    def asker() -> Any:
        from mfpo.pairs.ask import open_asker

        return open_asker(named, settings, engine=engine, endpoint=endpoint)

    checker = open_checker(check, asker, out, settings)
    from mfpo.pairs.run import pairs_into  # seconds of imports: a mistake is told before them

    summary = pairs_into(
        questions, asker(), checker, out, settings, format=format, progress=lambda rows: counted(rows, "asking")
    )
    _report(out, summary)


def _check_arguments(source: str, format: str) -> None:
    """Raises MfpoError for a format that there is not, and when there is no source."""
    if format not in _FORMATS:
        raise SettingError(f"no format is named {brief(format)}; give --format {', '.join(_FORMATS)}")
    if not scene_count(source) and not Path(source).exists():
        raise MfpoError(f"{source}: no such file or folder; give a folder of images, or a file of questions")


def _open_questions(source: str, images: Path | None, seed: int) -> Any:
    if count := scene_count(source):
        if images:
            raise SettingError("the picture book brings its images; leave out --images")
        from mfpo.picturebook.questions import PictureBookQuestions

        return PictureBookQuestions(count, seed=seed, book=source.partition(":")[0])
    from mfpo.pairs.questions import open_questions

    return open_questions(Path(source), images, seed)


def _report(out: Path, summary: Any) -> None:
    """Say what became of the questions; those set aside give an exit status of their own."""
    shares = summary["true_share"]
    console.print(f"{out}: {summary['paired']} pairs of {summary['asked']} questions")
    console.print(
        f"true claims: {100 * shares['chosen']:.1f} % in chosen, {100 * shares['rejected']:.1f} % in rejected"
    )
    for reason, count in summary["left_out"].items():
        console.print(f"  without a pair: {count} x {reason}")
    say_set_aside(out, summary, "questions", summary["asked"])
