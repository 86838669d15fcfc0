"""The commands of `mfpo eval`: nothing but parsing, calls and tables."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.table import Column, Table

from mfpo.answer.openai_client import OPENAI
from mfpo.cli.console import Config, Overrides, console
from mfpo.folders import check_file, check_readable

eval_app = typer.Typer(help="Score answers by a benchmark.", no_args_is_help=True)

Answers = Annotated[Path, typer.Argument(help="JSONL of answers, ours or another tool's; docs/evaluate.md.")]
Json = Annotated[Path | None, typer.Option("--json", callback=check_file, help="File to write every figure to.")]
JUDGE = typer.Option(help="The judge, as the endpoint calls it.")
Endpoint = Annotated[str, typer.Option(help="URL of an OpenAI-compatible endpoint; its key is OPENAI_API_KEY.")]
Template = Annotated[Path | None, typer.Option(help="Text of the judge's prompt; docs/judges.md.")]
System = Annotated[Path | None, typer.Option(help="Text of the judge's system message; docs/judges.md.")]
Official = Annotated[bool, typer.Option("--official", help="One order only, as the official script.")]
Questions = Annotated[Path | None, typer.Option(help="Object HalBench's questions.")]
Synonyms = Annotated[Path | None, typer.Option(help="The official table of refined synonyms.")]
Extract = Annotated[
    Literal["judge", "rules"] | None, typer.Option(help="Who names the objects; without --judge: rules.")
]
Tagger = Annotated[str | None, typer.Option(help="textblob, the default, or a spaCy pipeline as en_core_web_trf.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Count what is not answered instead of stopping.")]


@eval_app.command("chair")
def eval_chair(
    answers: Answers,
    annotations: Annotated[Path, typer.Option(help="COCO instances JSON, or JSONL with image_id and objects.")],
    allow_missing: AllowMissing = False,
    json_file: Json = None,
) -> None:
    """CHAIR: the share of named objects that are not in the image (Rohrbach et al. 2018).

    Example: mfpo eval chair captions.jsonl --annotations instances_val2014.json --json chair.json
    """
    check_readable(answers)
    check_readable(annotations)
    from mfpo.evaluate.answers import read_answers
    from mfpo.evaluate.chair import chair, chair_json, load_annotations

    result = chair(read_answers(answers), load_annotations(annotations), allow_missing=allow_missing)
    _show(chair_json(result), json_file)


@eval_app.command("truth")
def eval_truth(
    instances: Annotated[list[Path], typer.Option(help="COCO instances JSON; may be given again.")],
    captions: Annotated[list[Path], typer.Option(help="COCO captions JSON; may be given again.")],
    out: Annotated[Path, typer.Option(callback=check_file, help="Compact file to write, such as truth.jsonl.gz.")],
) -> None:
    """Join COCO's instances and reference captions into CHAIR's ground truth.

    Example: mfpo eval truth --instances instances_val2014.json --captions captions_val2014.json --out truth.jsonl.gz
    """
    from mfpo.evaluate.chair import prepare_truth

    console.print(f"{out}: {prepare_truth(instances, captions, out)} images")


@eval_app.command("existence")
def eval_existence(
    answers: Answers,
    annotations: Annotated[Path | None, typer.Option(help="The questions, with label yes or no.")] = None,
    allow_missing: AllowMissing = False,
    json_file: Json = None,
) -> None:
    """Existence questions, read more carefully than POPE's script does.

    Example: mfpo eval existence answers.jsonl --annotations coco_pope_random.json --json existence.json
    """
    check_readable(answers)
    check_readable(annotations)
    from mfpo.evaluate.answers import read_answers
    from mfpo.evaluate.existence import (
        existence,
        existence_json,
        load_questions,
        questions_in,
        read_existence_answers,
    )

    if annotations:
        questions = load_questions(annotations)
        read = read_existence_answers(answers, questions)
    else:
        read = read_answers(answers)
        questions = questions_in(read)
    _show(existence_json(existence(read, questions, allow_missing=allow_missing)), json_file)


@eval_app.command("pope")
def eval_pope(
    answers: Annotated[
        list[Path], typer.Argument(help="A file a split, its name in the file's; their folder; one of all.")
    ],
    annotations: Annotated[Path, typer.Option(help="Folder of POPE's question files.")],
    allow_missing: AllowMissing = False,
    json_file: Json = None,
) -> None:
    """POPE by its three splits (Li et al. 2023).

    Example: mfpo eval pope answers/ --annotations pope --json pope.json
    """
    check_readable(annotations)
    from mfpo.evaluate.pope import pope, pope_json, read_pope

    given, questions = read_pope(answers, annotations)
    _show(pope_json(pope(given, questions, allow_missing=allow_missing), questions), json_file)


@eval_app.command("amber")
def eval_amber(
    answers: Answers,
    annotations: Annotated[Path, typer.Option(help="Folder of AMBER's data.")],
    allow_missing: AllowMissing = False,
    json_file: Json = None,
) -> None:
    """AMBER, descriptions and yes/no questions (Wang et al. 2023).

    Example: mfpo eval amber answers.json --annotations AMBER/data --json amber.json
    """
    check_readable(answers)
    check_readable(annotations)
    from mfpo.evaluate.amber import amber, amber_json, load_amber
    from mfpo.evaluate.amber_words import open_reading
    from mfpo.evaluate.answers import read_answers

    benchmark = load_amber(annotations)
    result = amber(read_answers(answers), benchmark, open_reading(benchmark.words), allow_missing=allow_missing)
    _show(amber_json(result), json_file)


@eval_app.command("mmhal")
def eval_mmhal(
    answers: Answers,
    annotations: Annotated[Path, typer.Option(help="MMHal-Bench's template file.")],
    judge: Annotated[str, JUDGE],
    endpoint: Endpoint = OPENAI,
    template: Template = None,
    allow_missing: AllowMissing = False,
    json_file: Json = None,
    overrides: Overrides = None,
    config: Config = None,
) -> None:
    """MMHal-Bench: a judge's ratings from 0 to 6 and the rate of hallucinations (Sun et al. 2023).

    Example: mfpo eval mmhal answers.jsonl --annotations mmhal-bench_answer_template.json --judge gpt-4-1106-preview
    """
    check_readable(answers)
    check_readable(annotations)
    from mfpo.evaluate.judged import judge_mmhal
    from mfpo.evaluate.mmhal import mmhal_json

    chosen = _judge(judge, endpoint, overrides, config)
    scored = judge_mmhal(answers, annotations, judge=chosen, template=template, allow_missing=allow_missing)
    _show(mmhal_json(*scored), json_file)


@eval_app.command("llava-bench")
def eval_llava_bench(
    answers: Answers,
    annotations: Annotated[Path, typer.Option(help="Folder of LLaVA-Bench (COCO).")],
    judge: Annotated[str, JUDGE],
    endpoint: Endpoint = OPENAI,
    system: System = None,
    official: Official = False,
    allow_missing: AllowMissing = False,
    json_file: Json = None,
    overrides: Overrides = None,
    config: Config = None,
) -> None:
    """LLaVA-Bench (COCO): a judge's score beside that of GPT-4's answer, in both orders (Liu et al. 2023).

    Example: mfpo eval llava-bench answers.jsonl --annotations llava_bench --judge gpt-4-0613
    """
    check_readable(answers)
    check_readable(annotations)
    from mfpo.evaluate.judged import judge_llava_bench
    from mfpo.evaluate.llava_bench import llava_bench_json

    chosen = _judge(judge, endpoint, overrides, config)
    scored = judge_llava_bench(
        answers, annotations, judge=chosen, system=system, official=official, allow_missing=allow_missing
    )
    _show(llava_bench_json(*scored), json_file)


@eval_app.command("object-halbench")
def eval_object_halbench(
    answers: Answers,
    annotations: Annotated[Path, typer.Option(help="CHAIR's truth, as for `mfpo eval chair`.")],
    questions: Questions = None,
    synonyms: Synonyms = None,
    extract: Extract = None,
    judge: Annotated[str | None, JUDGE] = None,
    endpoint: Endpoint = OPENAI,
    template: Template = None,
    tagger: Tagger = None,
    allow_missing: AllowMissing = False,
    json_file: Json = None,
    overrides: Overrides = None,
    config: Config = None,
) -> None:
    """Object HalBench: CHAIR on 300 images, the objects named by a judge or by rules (Yu et al. 2024).

    Example: mfpo eval object-halbench answers.jsonl --annotations truth.jsonl.gz --synonyms synonyms_refine.txt
    """
    check_readable(answers)
    check_readable(annotations)
    from mfpo.evaluate.judged import judge_object_halbench
    from mfpo.evaluate.object_halbench import object_halbench_json

    scored = judge_object_halbench(
        answers,
        annotations,
        judge=_judge(judge, endpoint, overrides, config),
        extract=extract,
        questions=questions,
        synonyms=synonyms,
        template=template,
        tagger=tagger,
        allow_missing=allow_missing,
    )
    _show(object_halbench_json(*scored), json_file)


@eval_app.command("compare")
def eval_compare(
    a: Annotated[Path, typer.Argument(help="Answers of one model.")],
    b: Annotated[Path, typer.Argument(help="Answers of another to the same questions.")],
    benchmark: Annotated[str, typer.Option(help="The name of its command, such as chair or mmhal.")],
    annotations: Annotated[Path, typer.Option(help="What scores them.")],
    judge: Annotated[str | None, JUDGE] = None,
    endpoint: Endpoint = OPENAI,
    template: Template = None,
    system: System = None,
    official: Official = False,
    questions: Questions = None,
    synonyms: Synonyms = None,
    extract: Extract = None,
    tagger: Tagger = None,
    json_file: Json = None,
    overrides: Overrides = None,
    config: Config = None,
) -> None:
    """Whether a gain is real: paired differences with 95 % intervals, by bootstrap over questions.

    The options of judges are those of the benchmark's own command, whose verdicts are taken up.

    Example: mfpo eval compare base.jsonl mfpo.jsonl --benchmark chair --annotations instances.json
    """
    check_readable(annotations)
    check_readable(a)
    check_readable(b)
    from mfpo.evaluate.compare import compare_answers
    from mfpo.folders import write_json

    options = {
        "judge": _judge(judge, endpoint, overrides, config),
        "template": template,
        "system": system,
        "official": official or None,
        "questions": questions,
        "synonyms": synonyms,
        "extract": extract,
        "tagger": tagger,
    }
    given = {name: value for name, value in options.items() if value is not None}
    differences, left_out = compare_answers(benchmark, a, b, annotations, **given)
    console.print(f"A: {a}", f"B: {b}", sep="\n")
    shown = Table(Column("figure", overflow="fold"), "A", "B", "A - B", "95 % interval", "p", "n")
    for name, d in differences.items():
        interval = f"{d.low:+.2f} to {d.high:+.2f}"
        shown.add_row(name, f"{d.a:.2f}", f"{d.b:.2f}", f"{d.difference:+.2f}", interval, f"{d.p:.3f}", str(d.n))
    console.print(shown)
    if left_out:
        console.print(f"{len(left_out)} left out, unreadable for one of the two: {', '.join(left_out)}")
    if json_file:
        write_json(json_file, {name: asdict(difference) for name, difference in differences.items()})


def _judge(name: str | None, endpoint: str, overrides: list[str] | None, config: Path | None) -> Any:
    """The judge's settings, or None where nothing is said of one."""
    from mfpo.evaluate.judge import JudgeSettings
    from mfpo.settings import read_settings

    if name is None and endpoint == OPENAI and not overrides and config is None:
        return None
    return read_settings(JudgeSettings, config, overrides or [], model=name, endpoint=endpoint)


def _show(figures: dict[str, Any], json_file: Path | None) -> None:
    """Print the figures, without the details of each answer, and write all of them to `json_file`."""
    from mfpo.folders import write_json

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
            "No verdict can be read: these figures say nothing of the answers."
            if tolerant in (None, unreadable)
            else "The official rule can read no verdict; see the tolerant figures.",
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
