"""Object HalBench: which objects do descriptions of 300 COCO images name that are not there (Yu et al. 2024, RLHF-V)?

The steps are those of eval/eval_gpt_obj_halbench.py in RLHF-V: a judge lists the objects of a description, and a table
of synonyms maps them to COCO's classes. Without a judge, rules read the objects from the text.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mfpo.answer.judge import Judge, Template, read_template
from mfpo.errors import MfpoError, SettingError
from mfpo.evaluate.answers import Answer, Asked, check_asked, check_captions, read_answers, thinking
from mfpo.evaluate.benchmark import AllowMissing, Result, benchmark
from mfpo.evaluate.figures import Tally, share
from mfpo.evaluate.object_lists import read_objects
from mfpo.files import read_id, read_rows, some
from mfpo.image_names import find_all, image_key
from mfpo.settings import about

if TYPE_CHECKING:
    from mfpo.evaluate.object_terms import Table

# Of the prompt in RLHF-V's script, without its outer blanks.
_OFFICIAL_PROMPT = "c3dc8146b288c75245224456441b366c51eb64a173436beb05fbffbd6bec06ff"
_OFFICIAL_JUDGE = "gpt-3.5-turbo-0613"
_IMAGES = 300
# How the SHA-256 of each of the eight prompts begins (RLHF-V, Table 6).
_PROMPTS = {
    "197d1556f6fa", "f4bb507df54c", "b0da955576dd", "e57b55fa4af1",
    "3f3b705c8d2c", "1cb76be63b96", "24b21832ced1", "44ba527ec11f",
}  # fmt: skip

# The parts of the official prompt, in its order.
PLACES = ("question", "answer")
# Our own wording of what the official prompt asks.
DEFAULT = Template(
    """A model was shown an image and asked:

{question}

It answered:

{answer}

Take the answer for true. List each visible object that it says is in the image, and no other. Write the bare name of \
the object, without its colour, material, size or any other property. Reply with a JSON list of texts and nothing \
else, for example ["dog", "dining table"]; reply with [] if it names no visible object.
""",
    PLACES,
)


@dataclass(frozen=True)
class Description:
    """The terms that one answer names, their COCO classes, and the classes in the image."""

    terms: tuple[str, ...]
    classes: tuple[str, ...]
    truth: frozenset[str]
    length: int

    @property
    def hallucinated(self) -> tuple[str, ...]:
        """The terms whose class is not in the image."""
        return tuple(term for term, name in zip(self.terms, self.classes, strict=True) if name not in self.truth)


@dataclass(frozen=True, kw_only=True)
class ObjectHalBench(Result):
    """The descriptions by image; those whose verdicts stay unreadable are left out.

    `extract` is "judge" or "rules", and `not_official` says in what these figures differ from published ones.
    """

    descriptions: Mapping[str, Description]
    extract: str
    not_official: tuple[str, ...]

    def json(self) -> dict[str, Any]:
        """How objects were read, the figures in percent with intervals, the counts, and each image's objects.

        Raises MfpoError when no verdict could be read.
        """
        if not self.descriptions:
            raise MfpoError(
                f"none of the judge's {len(self.left_out)} lists of objects can be read; use a judge that writes JSON"
            )
        figures = {name: asdict(figure) for name, figure in self.figures.items()}
        how = {"extract": self.extract, "not_official": list(self.not_official)}
        return how | figures | dict(self.facts) | {"details": list(self.details)}


@benchmark("object-halbench", asked_freely=True)
def object_halbench(
    answers: Path | Sequence[Answer],
    annotations: Path | Mapping[str, frozenset[str]],
    *,
    judge: Judge | None = None,
    extract: Annotated[
        Literal["judge", "rules"] | None, about("what finds objects; null: the judge if one is given, else rules")
    ] = None,
    questions: Annotated[Path | None, about("the benchmark's questions; null: the answers' own prompts")] = None,
    synonyms: Annotated[Path | None, about("the official table of refined synonyms; null: our own")] = None,
    template: Annotated[Path | None, about("text of the judge's prompt; docs/judges.md")] = None,
    tagger: Annotated[str | None, about("finds nouns in a judge's lists: textblob, or a spaCy pipeline")] = None,
    allow_missing: AllowMissing = False,
) -> ObjectHalBench:
    """Object HalBench: CHAIR on 300 images, objects found by a judge or by rules (Yu et al. 2024).

    The annotations are CHAIR's truth, as for `mfpo eval chair`.

    Example: mfpo eval object-halbench answers.jsonl --annotations truth.jsonl.gz synonyms=synonyms_refine.txt

    Without the questions, each annotated image may be described, and the judge sees the answers' own prompts. Raises
    MfpoError when images are unknown or double, when an answer is to another question, when answers are missing
    (`allow_missing` counts them instead), and when the judge fails permanently.
    """
    _check_judge(judge, extract, template, tagger)
    from mfpo.evaluate.object_terms import load_table  # and with it textblob, which takes seconds

    table = load_table(synonyms)
    prompts = load_prompts(questions) if questions else None
    wording = read_template(template, PLACES) if template else DEFAULT
    if isinstance(answers, Path):
        answers = read_answers(answers)
    truth = _truth_of(answers, annotations)
    answers_by_image = _by_image(answers, truth, prompts, allow_missing=allow_missing)
    # The official script takes Muffin's role name out of the answers.
    texts = {image: answer.text.replace("Assistant:", "").strip() for image, answer in answers_by_image.items()}
    asked = {image: (prompts or {}).get(image) or answer.prompt for image, answer in answers_by_image.items()}
    terms, differences = _terms(texts, asked, table, judge, wording, tagger or "textblob")
    counts = {"missing": len(prompts or answers) - len(answers_by_image), "empty": list(texts.values()).count("")}
    return _result(
        {
            name: _description(image_terms, texts[name], truth[name], table)
            for name, image_terms in terms.items()
            if image_terms is not None
        },
        [name for name, image_terms in terms.items() if image_terms is None],
        (*differences, *_differences_of_data(table, asked)),
        counts | thinking(answers_by_image.values()),
        judge,
    )


def _truth_of(answers: Sequence[Answer], annotations: Path | Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """The COCO classes in the images of the answers, by `image_key`."""
    from mfpo.truth import load_annotations

    truth = load_annotations(annotations) if isinstance(annotations, Path) else annotations
    classes_by_image = find_all((answer.image_id or "" for answer in answers), truth)
    return {image_key(name): classes for name, classes in classes_by_image.items()}


def _check_judge(judge: Judge | None, extract: str | None, template: Path | None, tagger: str | None) -> None:
    """Raise SettingError where the settings ask for a judge and there is none, or the other way round."""
    if extract and (extract == "judge") != (judge is not None):
        there = "a judge is given" if judge else "no judge is given"
        raise SettingError(f"extract is {extract}, but {there}; give --judge only with extract=judge")
    if template and judge is None:
        raise SettingError("a template is the prompt of a judge; give --judge, or leave out template")
    if tagger and judge is None:
        raise SettingError("a tagger reads what a judge lists; give --judge, or leave out tagger")


def _terms(
    texts: Mapping[str, str],
    asked: Mapping[str, str | None],
    table: "Table",
    judge: Judge | None,
    wording: Template,
    tagger: str,
) -> tuple[dict[str, list[str] | None], list[str]]:
    """The terms that each text names, None where no list of the judge's can be read; and what is not official there."""
    from mfpo.evaluate.object_terms import OFFICIAL_TAGGER, open_tagger, terms_in, terms_of

    if judge is None:
        return {image: terms_in(text, table) for image, text in texts.items()}, [
            "objects read by rules, not by a judge"
        ]
    tag_words = open_tagger(tagger, table)
    lists = _listed(texts, asked, judge, wording)
    model = judge.settings.model
    differences = {
        f"judge {model} instead of {_OFFICIAL_JUDGE}": model == _OFFICIAL_JUDGE,
        "other prompt of the judge": wording.is_the_one(_OFFICIAL_PROMPT),
        f"tagger {tagger} instead of {OFFICIAL_TAGGER}": tagger == OFFICIAL_TAGGER,
    }
    terms = {image: None if names is None else terms_of(names, table, tag_words) for image, names in lists.items()}
    return terms, [difference for difference, is_official in differences.items() if not is_official]


def _result(
    descriptions: Mapping[str, Description],
    unreadable: Sequence[str],
    not_official: tuple[str, ...],
    counts: Mapping[str, int],
    judge: Judge | None,
) -> ObjectHalBench:
    """The official figures: `chair_s`: answers with a hallucinated object / answers; papers print `chair_s_refined`,
    the same among answers that name an object, and `chair_i`: hallucinated objects / objects. `recall`: classes found /
    classes in the images.
    """
    each = descriptions.items()
    units: dict[str, dict[str, tuple[float, ...]]] = {
        "chair_s": {name: (bool(description.hallucinated), 1) for name, description in each},
        "chair_s_refined": {
            name: (bool(description.hallucinated), bool(description.terms)) for name, description in each
        },
        "chair_i": {name: (len(description.hallucinated), len(description.terms)) for name, description in each},
        "recall": {
            name: (len(description.truth.intersection(description.classes)), len(description.truth))
            for name, description in each
        },
    }
    described = descriptions.values()
    return ObjectHalBench(
        {name: Tally(parts, share) for name, parts in units.items()},
        facts={
            "printed_by_papers": ["chair_s_refined", "chair_i"],
            "answers": len(described) + len(unreadable),
            "answers_with_objects": sum(bool(description.terms) for description in described),
            "objects": sum(len(description.terms) for description in described),
            "length": sum(description.length for description in described) / max(1, len(described)),
            **counts,
            "unreadable": len(unreadable),
            "unreadable_images": list(unreadable),
            "judge": judge.report() if judge else None,
        },
        details=[
            {"image_id": name, "objects": list(description.terms), "hallucinated": list(description.hallucinated)}
            for name, description in each
        ],
        left_out=unreadable,
        descriptions=descriptions,
        extract="judge" if judge else "rules",
        not_official=not_official,
    )


def load_prompts(path: Path) -> dict[str, str]:
    """The benchmark's questions by `image_key`: JSONL with `image_id` and `question`, or ours with `image` and `text`.

    Raises MfpoError when a row is another, or when an image comes twice.
    """
    questions: dict[str, str] = {}
    for where, row in read_rows(path):
        image, text = read_id(row, ("image_id", "image"), where), row.get("question", row.get("text"))
        if image is None or not isinstance(text, str):
            raise MfpoError(f"{where}: is missing required fields: image_id and question")
        if image_key(image) in questions:
            raise MfpoError(
                f"{where}: image {some([image])} appears a second time; Object HalBench asks once about each"
            )
        questions[image_key(image)] = text
    return questions


def _by_image(
    answers: Sequence[Answer],
    truth: Mapping[str, frozenset[str]],
    questions: Mapping[str, str] | None,
    *,
    allow_missing: bool,
) -> dict[str, Answer]:
    """The answers by `image_key`, once they are known to be to these questions."""
    nameless = sum(answer.image_id is None for answer in answers)
    if nameless:
        raise MfpoError(f"{nameless} of {len(answers)} answers have no image_id; give one in each row")
    named = [replace(answer, question_id=image_key(str(answer.image_id))) for answer in answers]
    # Without the questions, nobody knows what else was asked.
    prompts = questions or {str(answer.question_id): "" for answer in named}
    unknown = [image for answer in named if (image := str(answer.question_id)) in prompts and image not in truth]
    if unknown:
        raise MfpoError(
            f"{len(unknown)} of {len(named)} images have no annotations ({some(unknown)}); give COCO 2014's"
        )
    asked = {image: Asked(prompt) for image, prompt in prompts.items()}
    answers_by_image = check_asked(named, asked, "Object HalBench", allow_missing=allow_missing)
    check_captions(answer.text for answer in answers_by_image.values())
    return answers_by_image


def _differences_of_data(table: "Table", asked: Mapping[str, str | None]) -> list[str]:
    """In what the table, the images, the prompts and the truth differ from the official ones."""
    strange = sum(_hash(prompt or "")[:12] not in _PROMPTS for prompt in asked.values())
    parts = {
        "other table of synonyms": table.official,
        f"{len(asked)} images instead of {_IMAGES}": len(asked) == _IMAGES,
        f"{strange} prompts that are none of the eight": strange == 0,
        "truth by CHAIR's table of synonyms": False,
    }
    return [difference for difference, is_official in parts.items() if not is_official]


def _listed(
    texts: Mapping[str, str], asked: Mapping[str, str | None], judge: Judge, template: Template
) -> dict[str, list[str] | None]:
    """The names that the judge lists, None where no reply can be read; three words or fewer are not asked about."""
    prompts = {}
    for image, text in texts.items():
        if len(text.split()) > 3:
            question = asked[image]
            if question is None:
                raise MfpoError(
                    f"image {some([image])}: its answer has no prompt, which the judge needs; give the questions"
                )
            prompts[image] = [{"role": "system", "content": template.fill(question, text)}]
    verdicts = judge.ask(prompts, read_objects, temperature=0.2, max_tokens=512)
    return {image: verdicts[image].reading if image in verdicts else [] for image in texts}


def _description(terms: Sequence[str], text: str, truth: frozenset[str], table: "Table") -> Description:
    """The terms that name a class; beside a toilet, a seat is no chair."""
    known = tuple(term for term in terms if term in table.classes and not (term == "seat" and "toilet" in terms))
    return Description(known, tuple(table.classes[term] for term in known), truth, len(text.split(" ")))


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()
