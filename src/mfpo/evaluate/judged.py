"""The benchmarks that need a judge, from files to figures; the verdicts are kept beside the answers."""

from pathlib import Path
from typing import Literal

from mfpo.errors import SettingError
from mfpo.evaluate import llava_bench as llava
from mfpo.evaluate import mmhal as mm
from mfpo.evaluate import object_halbench as objects
from mfpo.evaluate.answers import read_answers
from mfpo.evaluate.chair import load_annotations
from mfpo.evaluate.judge import Judge, JudgeSettings, read_template
from mfpo.files import read_text

Extract = Literal["judge", "rules"]


def judge_mmhal(
    answers: Path,
    annotations: Path,
    *,
    judge: JudgeSettings,
    template: Path | None = None,
    allow_missing: bool = False,
) -> tuple[mm.Mmhal, Judge]:
    """MMHal-Bench; `annotations` is its template file, and `template` the judge's prompt."""
    questions = mm.load_mmhal(annotations)
    given = mm.read_mmhal_answers(answers, questions)
    prompt = read_template(template, mm.PLACES) if template else mm.DEFAULT
    opened = _open(judge, answers)
    return mm.mmhal(given, questions, opened, template=prompt, allow_missing=allow_missing), opened


def judge_llava_bench(
    answers: Path,
    annotations: Path,
    *,
    judge: JudgeSettings,
    system: Path | None = None,
    official: bool = False,
    allow_missing: bool = False,
) -> tuple[llava.LlavaBench, Judge]:
    """LLaVA-Bench (COCO); `annotations` is its folder, `system` the judge's system message, `official` one order."""
    benchmark = llava.load_llava_bench(annotations)
    given = read_answers(answers)
    message = read_text(system).strip() if system else llava.SYSTEM
    opened = _open(judge, answers)
    result = llava.llava_bench(given, benchmark, opened, official=official, system=message, allow_missing=allow_missing)
    return result, opened


def judge_object_halbench(
    answers: Path,
    annotations: Path,
    *,
    judge: JudgeSettings | None = None,
    extract: Extract | None = None,
    questions: Path | None = None,
    synonyms: Path | None = None,
    template: Path | None = None,
    tagger: str | None = None,
    allow_missing: bool = False,
) -> tuple[objects.ObjectHalBench, Judge | None]:
    """Object HalBench; `annotations` is CHAIR's truth, `synonyms` the table, and `template` the judge's prompt.

    `extract` says who reads the objects, by default the judge if there is one. Raises SettingError when it says "judge"
    and there is none, or "rules" and there is one, and for a template or a tagger without a judge.
    """
    if extract and (extract == "judge") != (judge is not None):
        given_judge = "a judge is given" if judge else "no judge is given"
        raise SettingError(f"extract is {extract}, but {given_judge}; give --judge with --extract judge alone")
    if template and judge is None:
        raise SettingError("a template is the prompt of a judge; give --judge, or leave out --template")
    if tagger and judge is None:
        raise SettingError("a tagger reads what a judge lists; give --judge, or leave out --tagger")
    truth = load_annotations(annotations)
    table = objects.load_table(synonyms)
    asked = objects.load_questions(questions) if questions else None
    prompt = read_template(template, objects.PLACES) if template else objects.DEFAULT
    given = read_answers(answers)
    opened = _open(judge, answers) if judge else None
    result = objects.object_halbench(
        given,
        truth,
        table,
        judge=opened,
        questions=asked,
        template=prompt,
        tagger=tagger or "textblob",
        allow_missing=allow_missing,
    )
    return result, opened


def _open(judge: JudgeSettings, answers: Path) -> Judge:
    return Judge(judge, answers.with_name(answers.name + ".verdicts.jsonl"))
