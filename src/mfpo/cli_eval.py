"""The commands of `mfpo eval`: nothing but parsing, calls and tables."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

eval_app = typer.Typer(help="Score answers by a benchmark.", no_args_is_help=True)
console = Console(markup=False, emoji=False, highlight=False)

Answers = Annotated[Path, typer.Argument(help="JSONL of answers, ours or another tool's; docs/evaluate.md.")]
Json = Annotated[Path | None, typer.Option("--json", help="File to write every figure to.")]
JudgeName = Annotated[str, typer.Option(help="The judge, as the endpoint calls it.")]
Endpoint = Annotated[str, typer.Option(help="URL of an OpenAI-compatible endpoint; its key is OPENAI_API_KEY.")]
JudgeSettingsOption = Annotated[
    list[str] | None, typer.Option("--set", help="Another setting of the judge; `mfpo settings judge` lists them.")
]
OPENAI = "https://api.openai.com/v1"
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
    from mfpo.evaluate.answers import read_answers
    from mfpo.evaluate.chair import chair, chair_json, load_annotations

    result = chair(read_answers(answers), load_annotations(annotations), allow_missing=allow_missing)
    _show(chair_json(result), json_file)


@eval_app.command("truth")
def eval_truth(
    instances: Annotated[list[Path], typer.Option(help="COCO instances JSON; may be given again.")],
    captions: Annotated[list[Path], typer.Option(help="COCO captions JSON; may be given again.")],
    out: Annotated[Path, typer.Option(help="Compact file to write, such as truth.jsonl.gz.")],
) -> None:
    """Join COCO's instances and reference captions into CHAIR's ground truth.

    Example: mfpo eval truth --instances instances_val2014.json --captions captions_val2014.json --out truth.jsonl.gz
    """
    from mfpo.evaluate.chair import prepare_truth

    console.print(f"{out}: {prepare_truth(instances, captions, out)} images")


@eval_app.command("existence")
def eval_existence(
    answers: Answers,
    annotations: Annotated[Path | None, typer.Option(help="JSONL of the questions, with label yes or no.")] = None,
    allow_missing: AllowMissing = False,
    json_file: Json = None,
) -> None:
    """Existence questions, read more carefully than POPE's script does.

    Example: mfpo eval existence answers.jsonl --annotations coco_pope_random.jsonl --json existence.json
    """
    from mfpo.evaluate.answers import read_answers
    from mfpo.evaluate.existence import existence, labels_of, load_questions

    read = read_answers(answers)
    labels = labels_of(load_questions(annotations) if annotations else read)
    _show(asdict(existence(read, labels, allow_missing=allow_missing)), json_file)


@eval_app.command("pope")
def eval_pope(
    answers: Annotated[list[Path], typer.Argument(help="A file a split, its name in the file's, or their folder.")],
    annotations: Annotated[Path, typer.Option(help="Folder of POPE's question files.")],
    allow_missing: AllowMissing = False,
    json_file: Json = None,
) -> None:
    """POPE by its three splits (Li et al. 2023).

    Example: mfpo eval pope answers/ --annotations pope --json pope.json
    """
    from mfpo.evaluate.answers import read_answers
    from mfpo.evaluate.existence import load_questions
    from mfpo.evaluate.pope import pope, pope_json, split_files

    given = {split: read_answers(file) for split, file in split_files(answers).items()}
    questions = {split: load_questions(file) for split, file in split_files([annotations]).items()}
    _show(pope_json(pope(given, questions, allow_missing=allow_missing)), json_file)


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
    judge: JudgeName,
    endpoint: Endpoint = OPENAI,
    template: Annotated[Path | None, typer.Option(help="Text of the judge's prompt; docs/judges.md.")] = None,
    allow_missing: AllowMissing = False,
    json_file: Json = None,
    settings: JudgeSettingsOption = None,
) -> None:
    """MMHal-Bench: a judge's ratings from 0 to 6 and the rate of hallucinations (Sun et al. 2023).

    Example: mfpo eval mmhal answers.jsonl --annotations mmhal-bench_answer_template.json --judge gpt-4-1106-preview
    """
    from mfpo.evaluate.judge import read_template
    from mfpo.evaluate.mmhal import DEFAULT, PLACES, load_mmhal, mmhal, mmhal_json, read_mmhal_answers

    asked = load_mmhal(annotations)
    opened = _judge(answers, judge, endpoint, settings)
    prompt = read_template(template, PLACES) if template else DEFAULT
    read = read_mmhal_answers(answers, asked)
    _show(mmhal_json(mmhal(read, asked, opened, template=prompt, allow_missing=allow_missing), opened), json_file)


@eval_app.command("llava-bench")
def eval_llava_bench(
    answers: Answers,
    annotations: Annotated[Path, typer.Option(help="Folder of LLaVA-Bench (COCO).")],
    judge: JudgeName,
    endpoint: Endpoint = OPENAI,
    official: Annotated[bool, typer.Option("--official", help="One order only, as the official script.")] = False,
    allow_missing: AllowMissing = False,
    json_file: Json = None,
    settings: JudgeSettingsOption = None,
) -> None:
    """LLaVA-Bench (COCO): a judge's score beside that of GPT-4's answer, in both orders (Liu et al. 2023).

    Example: mfpo eval llava-bench answers.jsonl --annotations llava_bench --judge gpt-4-0613
    """
    from mfpo.evaluate.answers import read_answers
    from mfpo.evaluate.llava_bench import llava_bench, llava_bench_json, load_llava_bench

    benchmark = load_llava_bench(annotations)
    opened = _judge(answers, judge, endpoint, settings)
    result = llava_bench(read_answers(answers), benchmark, opened, official=official, allow_missing=allow_missing)
    _show(llava_bench_json(result, opened), json_file)


@eval_app.command("object-halbench")
def eval_object_halbench(
    answers: Answers,
    annotations: Annotated[Path, typer.Option(help="CHAIR's truth, as for `mfpo eval chair`.")],
    questions: Annotated[Path | None, typer.Option(help="The benchmark's questions, for the judge.")] = None,
    synonyms: Annotated[Path | None, typer.Option(help="The official table of refined synonyms.")] = None,
    judge: Annotated[str | None, typer.Option(help="Name of the judge that names the objects; without: rules.")] = None,
    endpoint: Endpoint = OPENAI,
    template: Annotated[Path | None, typer.Option(help="Text of the judge's prompt; docs/judges.md.")] = None,
    tagger: Annotated[str, typer.Option(help="textblob, or a spaCy pipeline as en_core_web_trf.")] = "textblob",
    allow_missing: AllowMissing = False,
    json_file: Json = None,
    settings: JudgeSettingsOption = None,
) -> None:
    """Object HalBench: CHAIR on 300 images, the objects named by a judge or by rules (Yu et al. 2024).

    Example: mfpo eval object-halbench answers.jsonl --annotations truth.jsonl.gz --synonyms synonyms_refine.txt
    """
    from mfpo.evaluate.answers import read_answers
    from mfpo.evaluate.chair import load_annotations
    from mfpo.evaluate.judge import read_template
    from mfpo.evaluate.object_halbench import (
        DEFAULT,
        load_questions,
        load_table,
        object_halbench,
        object_halbench_json,
    )

    opened = _judge(answers, judge, endpoint, settings) if judge else None
    result = object_halbench(
        read_answers(answers),
        load_annotations(annotations),
        load_table(synonyms),
        judge=opened,
        questions=load_questions(questions) if questions else None,
        template=read_template(template, ("question", "answer")) if template else DEFAULT,
        tagger=tagger,
        allow_missing=allow_missing,
    )
    _show(object_halbench_json(result, opened), json_file)


@eval_app.command("compare")
def eval_compare(
    a: Annotated[Path, typer.Argument(help="Answers of one model.")],
    b: Annotated[Path, typer.Argument(help="Answers of another to the same questions.")],
    benchmark: Annotated[str, typer.Option(help="chair, existence, pope or amber.")],
    annotations: Annotated[Path, typer.Option(help="What scores them.")],
    json_file: Json = None,
) -> None:
    """Whether a gain is real: paired differences with 95 % intervals, by bootstrap over questions.

    Example: mfpo eval compare base.jsonl mfpo.jsonl --benchmark chair --annotations instances.json
    """
    from mfpo.evaluate.compare import compare_answers
    from mfpo.folders import write_json

    differences = compare_answers(benchmark, a, b, annotations)
    console.print(f"A: {a}", f"B: {b}", sep="\n")
    shown = Table("figure", "A", "B", "A - B", "95 % interval", "p", "n")
    for name, d in differences.items():
        interval = f"{d.low:+.1f} to {d.high:+.1f}"
        shown.add_row(name, f"{d.a:.1f}", f"{d.b:.1f}", f"{d.difference:+.1f}", interval, f"{d.p:.3f}", str(d.n))
    console.print(shown)
    if json_file:
        write_json(json_file, {name: asdict(difference) for name, difference in differences.items()})


def _judge(answers: Path, name: str, endpoint: str, settings: list[str] | None) -> Any:
    """The judge, whose verdicts are kept beside the answers."""
    from mfpo.evaluate.judge import Judge, JudgeSettings
    from mfpo.settings import read_settings

    chosen = read_settings(JudgeSettings, None, settings or [], model=name, endpoint=endpoint)
    return Judge(chosen, answers.with_name(answers.name + ".verdicts.jsonl"))


def _show(figures: dict[str, Any], json_file: Path | None) -> None:
    """Print the figures, without the details of each answer, and write all of them to `json_file`."""
    from mfpo.folders import write_json

    intervals = figures.get("intervals", {})
    shown = Table("figure", "value", "95 % interval", "n")
    for name, value in _flat({key: value for key, value in figures.items() if key != "intervals"}):
        figure = intervals.get(name, value)
        if isinstance(figure, dict):
            interval = f"{figure['low']:.1f} to {figure['high']:.1f}"
            shown.add_row(name, f"{figure['value']:.1f}", interval, str(figure["n"]))
        else:
            shown.add_row(name, f"{value:.1f}" if isinstance(value, float) else str(value))
    console.print(shown)
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, figures)


def _flat(figures: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The figures of all sections, `section.figure`, and everything else but lists."""
    for name, value in figures.items():
        if isinstance(value, dict) and "low" not in value:
            yield from _flat(value, f"{before}{name}.")
        elif name != "details" and not isinstance(value, list):
            yield before + name, value
