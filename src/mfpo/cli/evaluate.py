"""The commands of `mfpo eval`: one per registered benchmark, `compare` and `truth`."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.table import Column, Table
from typer.core import TyperGroup

from mfpo.answer.judge_settings import JudgeSettings
from mfpo.answer.openai_client import OPENAI
from mfpo.cli.console import Config, Overrides, console
from mfpo.errors import SettingError, brief, nearest
from mfpo.evaluate.benchmark import BENCHMARKS, is_needed, score
from mfpo.folders import check_file, check_readable, write_json
from mfpo.settings import Settings, from_mapping, read_values, with_options


class _Benchmarks(TyperGroup):
    """The commands that are written here, and one for each benchmark."""

    def list_commands(self, context: Any) -> list[str]:
        return [*BENCHMARKS, *super().list_commands(context)]

    def get_command(self, context: Any, name: str) -> Any:
        return _command(name) if name in BENCHMARKS else super().get_command(context, name)

    def resolve_command(self, context: Any, words: list[str]) -> Any:
        names = self.list_commands(context)
        if words[0] not in names:
            raise SettingError(f"no benchmark is named {brief(words[0])}; {nearest(words[0], names)}")
        return super().resolve_command(context, words)


eval_app = typer.Typer(cls=_Benchmarks, help="Score answers by a benchmark.", no_args_is_help=True)

Json = Annotated[Path | None, typer.Option("--json", callback=check_file, help="File to write every figure to.")]
Annotations = Annotated[Path | None, typer.Option(help="The benchmark's annotations: a file or a folder.")]
# Scripts out there have these flags.
AllowMissing = Annotated[bool, typer.Option("--allow-missing", hidden=True)]
OldFile = Annotated[Path | None, typer.Option(hidden=True)]


def _command(name: str) -> Any:
    """`mfpo eval NAME`, whose help is the benchmark's docstring up to its example."""
    function = BENCHMARKS[name]
    no_judge = "judge" not in inspect.signature(function).parameters

    def run(
        answers: Annotated[Path, typer.Argument(help="JSONL of answers, ours or another tool's; docs/evaluate.md.")],
        overrides: Annotated[
            list[str] | None,
            typer.Argument(metavar="KEY=VALUE", help=f"Settings; `mfpo settings {name}` lists them."),
        ] = None,
        annotations: Annotations = None,
        judge: Annotated[str | None, typer.Option(help="The endpoint's name for the judge.", hidden=no_judge)] = None,
        endpoint: Annotated[
            str, typer.Option(help="URL of an OpenAI-compatible API; its key is OPENAI_API_KEY.", hidden=no_judge)
        ] = OPENAI,
        json_file: Json = None,
        config: Config = None,
        allow_missing: AllowMissing = False,
        questions: OldFile = None,
        synonyms: OldFile = None,
    ) -> None:
        words = overrides or []
        files = [answers, *(Path(word) for word in words if _takes_files(function) and _is_file(word))]
        for path in (*files, annotations):
            check_readable(path)
        words = [word for word in words if Path(word) not in files]
        settings = _settings(
            function, words, config, judge, endpoint, allow_missing or None, questions=questions, synonyms=synonyms
        )
        _show(score(name, files if len(files) > 1 else answers, annotations, **settings).json(), json_file)

    text, example, after = (inspect.getdoc(function) or "").partition("\n\nExample:")
    command = typer.Typer(add_completion=False)
    command.command(name, help=text + example + after.partition("\n\n")[0])(run)
    return typer.main.get_command(command)


@eval_app.command("compare")
def eval_compare(
    a: Annotated[Path, typer.Argument(help="Answers of one model.")],
    b: Annotated[Path, typer.Argument(help="Another model's answers to the same questions.")],
    benchmark: Annotated[str, typer.Option(help="Name of the benchmark, such as chair or mmhal.")],
    overrides: Overrides = None,
    annotations: Annotations = None,
    judge: Annotated[str | None, typer.Option(help="The endpoint's name for the judge.")] = None,
    endpoint: Annotated[str, typer.Option(help="URL of an OpenAI-compatible API.")] = OPENAI,
    json_file: Json = None,
    config: Config = None,
    questions: OldFile = None,
    synonyms: OldFile = None,
) -> None:
    """Test whether a gain is real: paired differences with 95 % intervals, by bootstrap over questions.

    Takes the settings of the benchmark's own command; cached verdicts of a judge are reused.

    Example: mfpo eval compare base.jsonl mfpo.jsonl --benchmark chair --annotations instances.json
    """
    for path in (annotations, a, b):
        check_readable(path)
    function = BENCHMARKS[benchmark]
    settings = _settings(function, overrides, config, judge, endpoint, questions=questions, synonyms=synonyms)
    from mfpo.evaluate.compare import compare

    differences, left_out = compare(benchmark, a, b, annotations, **settings)
    console.print(f"A: {a}", f"B: {b}", sep="\n")
    shown = Table(Column("figure", overflow="fold"), "A", "B", "A - B", "95 % interval", "p", "n")
    for name, d in differences.items():
        interval = f"{d.low:+.2f} to {d.high:+.2f}"
        shown.add_row(name, f"{d.a:.2f}", f"{d.b:.2f}", f"{d.difference:+.2f}", interval, f"{d.p:.3f}", str(d.n))
    console.print(shown)
    if left_out:
        console.print(f"{len(left_out)} left out, unreadable for one of the two: {', '.join(left_out)}")
    if json_file:
        written: dict[str, Any] = {name: asdict(difference) for name, difference in differences.items()}
        write_json(json_file, written | ({"left_out": left_out} if left_out else {}))


@eval_app.command("truth")
def eval_truth(
    instances: Annotated[list[Path], typer.Option(help="COCO instances JSON; may be repeated.")],
    captions: Annotated[list[Path], typer.Option(help="COCO captions JSON; may be repeated.")],
    out: Annotated[Path, typer.Option(callback=check_file, help="Compact file to write, such as truth.jsonl.gz.")],
    synonyms: Annotated[
        Path | None, typer.Option(help="CHAIR's table of words, to read captions as its script does.")
    ] = None,
) -> None:
    """Join COCO's instances and reference captions into CHAIR's ground truth.

    Example: mfpo eval truth --instances instances_val2014.json --captions captions_val2014.json --out truth.jsonl.gz
    """
    for path in (*instances, *captions, *([synonyms] if synonyms else [])):
        check_readable(path)
    from mfpo.evaluate.chair import read_by
    from mfpo.truth import prepare_truth

    classes_in, _ = read_by(synonyms)
    console.print(f"{out}: {prepare_truth(instances, captions, out, classes_in)} images")


def _settings(
    function: Callable[..., Any],
    overrides: list[str] | None,
    config: Path | None,
    judge: str | None,
    endpoint: str,
    allow_missing: bool | None = None,
    **files: Path | None,
) -> dict[str, Any]:
    """The arguments of `score` besides answers and annotations: the settings, and the judge if there is one.

    Raises SettingError as `from_mapping`.
    """
    asked = None if endpoint == OPENAI else endpoint
    values, where = read_values(
        config, overrides or [], model=judge, endpoint=asked, allow_missing=allow_missing, **files
    )
    of_judges = {field.name for field in fields(JudgeSettings)}
    takes_judge = "judge" in inspect.signature(function).parameters
    if (judge or asked) and not takes_judge:
        raise SettingError("this benchmark takes no judge; leave out --judge and --endpoint")
    has_judge = takes_judge and (is_needed(function, "judge") or not of_judges.isdisjoint(values))
    settings = from_mapping(with_options(JudgeSettings if has_judge else Settings, function), values, where)
    arguments = {name: getattr(settings, name) for name in values if name not in of_judges}
    return arguments | ({"judge": settings} if has_judge else {})


def _takes_files(function: Callable[..., Any]) -> bool:
    """Whether the answers may be several files."""
    answers = next(iter(inspect.signature(function).parameters.values()))
    return Sequence[Path] in get_args(answers.annotation)


def _is_file(word: str) -> bool:
    """Whether a word is another file of answers, and not KEY=VALUE."""
    return Path(word).exists() or not re.match(r"\w+=", word)


def _show(figures: dict[str, Any], json_file: Path | None) -> None:
    """Print the figures, without the details of each answer, and write all of them to `json_file`."""
    intervals = figures.get("intervals", {})
    shown = Table(Column("figure", no_wrap=True), Column("value", overflow="fold"), "95 % interval", "n")
    for name, value in _flat({key: value for key, value in figures.items() if key != "intervals"}):
        figure = intervals.get(name, value)
        if isinstance(figure, dict):
            interval = f"{figure['low']:.2f} to {figure['high']:.2f}"
            shown.add_row(name, f"{figure['value']:.2f}", interval, str(figure["n"]))
        elif isinstance(value, float):
            shown.add_row(name, f"{value:.4f}" if name == "judge.cost" else f"{value:.2f}")
        else:
            shown.add_row(name, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    console.print(shown)
    unreadable, tolerant = figures.get("unreadable"), figures.get("tolerant", {}).get("unreadable")
    if unreadable and unreadable == figures.get("answers"):
        console.print(
            "No verdict can be read: these figures say nothing about the answers."
            if tolerant in (None, unreadable)
            else "The official rule cannot read any verdict; see the tolerant figures.",
            style="yellow",
        )
    if json_file:
        write_json(json_file, figures)


def _flat(figures: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The figures of all sections, `section.figure`, and everything else but details and empty lists."""
    for name, value in figures.items():
        if isinstance(value, dict) and "low" not in value:
            yield from _flat(value, f"{before}{name}.")
        elif name != "details" and value != []:
            yield before + name, value
