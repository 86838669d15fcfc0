"""Object HalBench: which objects do descriptions of 300 COCO images name that are not there (Yu et al. 2024, RLHF-V)?

The steps are those of eval/eval_gpt_obj_halbench.py in RLHF-V: a judge lists the objects of a description, and a table
of synonyms maps them to COCO's classes. Without a judge, rules read the objects from the text.
"""

import ast
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

from textblob.en import tag

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, Asked, check_asked, check_captions, thinking
from mfpo.evaluate.figures import Tally, figure_of, share
from mfpo.evaluate.judge import Judge, Template
from mfpo.files import read_id, read_rows, some
from mfpo.image_names import find_all, image_key
from mfpo.nouns import word_letters
from mfpo.objects import ANIMALS, CATEGORIES, TOKEN, join_pairs, singular, singulars

# Of the prompt in RLHF-V's script, without its outer blanks, and of its table of synonyms.
_OFFICIAL_PROMPT = "c3dc8146b288c75245224456441b366c51eb64a173436beb05fbffbd6bec06ff"
_OFFICIAL_TABLE = "2d737a47045e2b0be2a47a2ce843a28afab97cb92218d83b6b3c633cfb86f398"
_OFFICIAL_TAGGER = "en_core_web_trf"
_OFFICIAL_JUDGE = "gpt-3.5-turbo-0613"
_IMAGES = 300
# How the SHA-256 of each of the eight prompts begins (RLHF-V, Table 6).
_PROMPTS = {
    "197d1556f6fa", "f4bb507df54c", "b0da955576dd", "e57b55fa4af1",
    "3f3b705c8d2c", "1cb76be63b96", "24b21832ced1", "44ba527ec11f",
}  # fmt: skip

# The official double words besides the table's own, and the word that each stands for.
_PAIRS = (
    {"home plate": "home plate", "train track": "train track", "bow tie": "tie", "toilet seat": "toilet"}
    | {f"{age} {animal}": animal for age in ("baby", "adult") for animal in (*ANIMALS, "animal", "cub")}
    | {"passenger jet": "jet", "passenger train": "train"}
)

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

# In a list of a line each: "1. dog", "- **traffic light**"; and the line that announces it.
_LISTED = re.compile(r"\s*(?:[-*•+]|\d+[.)])\s+[*`\"]*([^\W\d_]+(?:[ -][^\W\d_]+){0,3})[*`\".,;]*\s*")
_CHECKBOX = re.compile(r"\[ \](?=[ \t]+\S)")
_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_NO_COMMA = re.compile(r"""["']\s+["']""")
_ANNOUNCED = re.compile(r".*\b(objects?|list|here|things|items)\b.*:[ *]*", re.IGNORECASE)

# A text's words, each as its lemma, with whether it is a noun.
Tagger = Callable[[str], list[tuple[str, bool]]]


@dataclass(frozen=True)
class Table:
    """The COCO class of each term, and the terms that two words stand for."""

    classes: Mapping[str, str]
    pairs: Mapping[str, str]
    official: bool

    @cached_property
    def _singulars(self) -> dict[str, str]:
        return singulars(word for term in self.classes for word in term.split())

    def singular(self, word: str) -> str:
        """`word` in lower case and singular; a word of the table stays ("bus", "glass")."""
        return singular(word, self._singulars, self.classes)

    def has(self, words: str) -> bool:
        """Whether `words`, in singular or plural, are a term of the table."""
        return " ".join(map(self.singular, words.split())) in self.classes


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


@dataclass(frozen=True)
class ObjectHalBench:
    """The descriptions by image, and the images whose verdicts stay unreadable.

    `extract` is "judge" or "rules", and `not_official` says in what these figures differ from published ones.
    """

    descriptions: Mapping[str, Description]
    unreadable: tuple[str, ...]
    extract: str
    not_official: tuple[str, ...]
    missing: int
    empty: int
    thinking: dict[str, int] = field(default_factory=dict)

    @property
    def tallies(self) -> dict[str, Tally]:
        """What the figures are made of; the two first differ in what they count by, all answers or those with objects.

        - chair_s: answers with a hallucinated object / answers. - chair_s_refined: the same / answers with an object.
        - chair_i: hallucinated objects / objects. - recall: classes found / classes in the images.
        """
        found = self.descriptions.items()
        units: dict[str, dict[str, tuple[float, ...]]] = {
            "chair_s": {name: (bool(one.hallucinated), 1) for name, one in found},
            "chair_s_refined": {name: (bool(one.hallucinated), bool(one.terms)) for name, one in found},
            "chair_i": {name: (len(one.hallucinated), len(one.terms)) for name, one in found},
            "recall": {name: (len(one.truth.intersection(one.classes)), len(one.truth)) for name, one in found},
        }
        return {name: Tally(counts, share) for name, counts in units.items()}


def object_halbench(
    answers: Sequence[Answer],
    truth: Mapping[str, frozenset[str]],
    table: Table,
    *,
    judge: Judge | None = None,
    questions: Mapping[str, str] | None = None,
    template: Template = DEFAULT,
    tagger: str = "textblob",
    allow_missing: bool = False,
) -> ObjectHalBench:
    """Score descriptions; the judge lists their objects, or rules do where there is none.

    `truth` holds the COCO classes by `image_key`, `questions` the benchmark's questions likewise; without these, each
    image of `truth` may be described, and the judge is told the answers' own prompts. `tagger` finds the nouns in the
    names that the judge gives: a spaCy pipeline (officially en_core_web_trf) or TextBlob's. Raises MfpoError when
    images are unknown or double, when an answer is to another question, when answers are missing (`allow_missing`
    counts them instead), and when the judge fails for good.
    """
    found = find_all((answer.image_id or "" for answer in answers), truth)
    truth = {image_key(name): classes for name, classes in found.items()}
    given = _by_image(answers, truth, questions, allow_missing=allow_missing)
    # The official script takes Muffin's role name out of the answers.
    texts = {image: answer.text.replace("Assistant:", "").strip() for image, answer in given.items()}
    asked = {image: (questions or {}).get(image) or answer.prompt for image, answer in given.items()}
    terms: dict[str, list[str] | None]
    if judge:
        tag_words = _open_tagger(tagger, table)
        lists = _listed(texts, asked, judge, template)
        terms = {image: None if names is None else _terms_of(names, table, tag_words) for image, names in lists.items()}
        differences = _differences_of_judge(judge, template, tagger)
    else:
        terms = {image: _terms_in(text, table) for image, text in texts.items()}
        differences = ["objects read by rules, not by a judge"]
    return ObjectHalBench(
        {
            image: _description(found, texts[image], truth[image], table)
            for image, found in terms.items()
            if found is not None
        },
        tuple(image for image, found in terms.items() if found is None),
        extract="judge" if judge else "rules",
        not_official=(*differences, *_differences_of_data(table, asked)),
        missing=len(questions or answers) - len(given),
        empty=sum(not text for text in texts.values()),
        thinking=thinking(given.values()),
    )


def read_objects(reply: str) -> list[str] | None:
    """The list of texts that a reply is or holds, or None: JSON, Python's notation, or a line each.

    >>> read_objects('["dog", "cat"]'), read_objects('Here:\\n["dog"]'), read_objects("()"), read_objects("A dog.")
    (['dog', 'cat'], ['dog'], [], None)
    """
    text = _CHECKBOX.sub("", reply).strip()
    if text == "()":  # what the official prompt calls an empty list
        return []
    bracketed = text[text.find("[") : text.rfind("]") + 1]
    for part in (text, text.rpartition("\n")[2], bracketed):
        if (entries := _entries(part)) is not None:
            return _texts(entries)
    found = [names for part in _BRACKETS.findall(text) if (names := _texts(_entries(part))) is not None]
    return found[0] if len(found) == 1 else _lines(text)


def _entries(text: str) -> list[Any] | None:
    """The list that a text is, in JSON's notation, or Python's: in single quotes, with a comma after the last."""
    if _NO_COMMA.search(text):  # Python would make one text of the two
        return None
    for read in (json.loads, ast.literal_eval):
        # No list, a number of thousands of digits, endless brackets.
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            value = read(text)
            return value if isinstance(value, list) else None
    return None


def _texts(entries: list[Any] | None) -> list[str] | None:
    return entries if entries is not None and all(isinstance(name, str) for name in entries) else None


def _lines(text: str) -> list[str] | None:
    """The names in a list of a line each, with at most a line before it that announces the list."""
    first, *rest = [line for line in text.splitlines() if line.strip()] or [""]
    found = [_LISTED.fullmatch(line) for line in (rest if _ANNOUNCED.fullmatch(first) else [first, *rest])]
    return [match.group(1) for match in found if match] if found and all(found) else None


def object_halbench_json(result: ObjectHalBench, judge: Judge | None = None) -> dict[str, Any]:
    """The figures in percent with intervals, how objects were read, the counts, and each image's objects.

    Raises MfpoError when no verdict could be read.
    """
    if not result.descriptions:
        raise MfpoError(
            f"none of the judge's {len(result.unreadable)} lists of objects can be read; take a judge that writes JSON"
        )
    described = result.descriptions.values()
    return {
        "extract": result.extract,
        "not_official": list(result.not_official),
        **{name: asdict(figure_of(tally)) for name, tally in result.tallies.items()},
        "printed_by_papers": ["chair_s_refined", "chair_i"],
        "answers": len(described),
        "answers_with_objects": sum(bool(one.terms) for one in described),
        "objects": sum(len(one.terms) for one in described),
        "length": sum(one.length for one in described) / len(described),
        "missing": result.missing,
        "empty": result.empty,
        **result.thinking,
        "unreadable": len(result.unreadable),
        "unreadable_images": list(result.unreadable),
        "judge": judge.report() if judge else None,
        "details": [
            {"image_id": image, "objects": list(one.terms), "hallucinated": list(one.hallucinated)}
            for image, one in result.descriptions.items()
        ],
    }


def load_table(path: Path | None = None) -> Table:
    """Read a table of synonyms, by default our own: a line a class, with its words after it.

    Raises MfpoError when the classes are not COCO's.
    """
    source = path or files("mfpo").joinpath("coco_words.txt")
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MfpoError(f"{path}: cannot be read ({error}); give RLHF-V's synonyms_refine.txt") from None
    lines = [re.split(r"\s*[:,]\s*", line.strip()) for line in text.splitlines() if not line.startswith("#")]
    # In our own table "none" holds words of two, of which no single one counts; _PAIRS has them.
    classes = {term: line[0] for line in lines if line[0] != "none" for term in line if term}
    strange = sorted(set(classes.values()).symmetric_difference(CATEGORIES))
    if strange:
        raise MfpoError(
            f"{path}: {len(strange)} classes are not COCO's or are absent ({some(strange)}); "
            "give a line a class: the class, then its synonyms, all between commas"
        )
    return Table(classes, {term: term for term in classes if " " in term} | _PAIRS, _hash(text) == _OFFICIAL_TABLE)


def load_questions(path: Path) -> dict[str, str]:
    """The benchmark's questions by `image_key`: JSONL with `image_id` and `question`, or ours with `image` and `text`.

    Raises MfpoError when a row is another, or when an image comes twice.
    """
    questions: dict[str, str] = {}
    for where, row in read_rows(path):
        image, text = read_id(row, ("image_id", "image"), where), row.get("question", row.get("text"))
        if image is None or not isinstance(text, str):
            raise MfpoError(f"{where}: is missing required fields: image_id and question")
        if image_key(image) in questions:
            raise MfpoError(f"{where}: image {some([image])} comes a second time; Object HalBench asks once about each")
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
    prompts = questions or {name: "" for answer in named if (name := str(answer.question_id)) in truth}
    asked = {image: Asked(prompt) for image, prompt in prompts.items()}
    given = check_asked(named, asked, "Object HalBench", allow_missing=allow_missing)
    check_captions(answer.text for answer in given.values())
    unknown = [image for image in given if image not in truth]
    if unknown:
        raise MfpoError(
            f"{len(unknown)} of {len(given)} images have no annotations ({some(unknown)}); give those of COCO 2014"
        )
    return given


def _differences_of_judge(judge: Judge, template: Template, tagger: str) -> list[str]:
    """In what the judge and the reading of its lists differ from the official ones."""
    model = judge.settings.model
    parts = {
        f"judge {model} instead of {_OFFICIAL_JUDGE}": model == _OFFICIAL_JUDGE,
        "other prompt of the judge": template.is_the_one(_OFFICIAL_PROMPT),
        f"tagger {tagger} instead of {_OFFICIAL_TAGGER}": tagger == _OFFICIAL_TAGGER,
    }
    return [difference for difference, is_official in parts.items() if not is_official]


def _differences_of_data(table: Table, asked: Mapping[str, str | None]) -> list[str]:
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


def _terms_of(names: Sequence[str], table: Table, tagger: Tagger) -> list[str]:
    """The terms that the judge's names stand for, each once: their double words, or else their runs of nouns."""
    terms: list[str] = []
    for name in names:
        tagged = tagger(f"a {name}")
        lemmas = [lemma for lemma, _ in tagged]
        double = [term for term, is_double in _merge(lemmas, table.pairs) if is_double]
        terms += double or _noun_runs(tagged)
    return list(dict.fromkeys(terms))


def _noun_runs(tagged: Sequence[tuple[str, bool]]) -> list[str]:
    marked = " ".join(lemma if is_noun else "|" for lemma, is_noun in tagged)
    return [run.strip() for run in marked.split("|") if run.strip()]


def _terms_in(text: str, table: Table) -> list[str]:
    """The terms of a text, each mention, as the official script reads COCO's reference captions."""
    words = [table.singular(token) for token in TOKEN.findall(text)]
    return [term for term, _ in _merge(words, table.pairs)]


def _merge(words: Sequence[str], pairs: Mapping[str, str]) -> list[tuple[str, bool]]:
    """The words, two that are a pair as the term that it stands for, each with whether it was one."""
    spans = [words[start:end] for start, end in join_pairs(words, pairs)]
    return [(pairs[" ".join(span)], True) if len(span) == 2 else (span[0], False) for span in spans]


def _description(terms: Sequence[str], text: str, truth: frozenset[str], table: Table) -> Description:
    """The terms that name a class; beside a toilet, a seat is no chair."""
    known = tuple(term for term in terms if term in table.classes and not (term == "seat" and "toilet" in terms))
    return Description(known, tuple(table.classes[term] for term in known), truth, len(text.split(" ")))


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()


def _open_tagger(name: str, table: Table) -> Tagger:
    """The tagger of that name; what the official one says stands. Raises MfpoError when it is not installed."""
    if name == "textblob":
        return lambda text: _nouns_marked(tag(text), table)
    try:
        import spacy

        pipeline = spacy.load(name)
    except (ImportError, OSError) as error:
        raise MfpoError(
            f"tagger is {name!r}, which cannot be loaded ({str(error).splitlines()[0]}); give textblob or an "
            f"installed spaCy pipeline, officially {_OFFICIAL_TAGGER}"
        ) from None
    if name == _OFFICIAL_TAGGER:
        return lambda text: [(token.lemma_, token.tag_ in ("NN", "NNS", "NNP", "NNPS")) for token in pipeline(text)]
    return lambda text: _nouns_marked([(token.text, token.tag_) for token in pipeline(text)], table)


def _nouns_marked(tagged: Sequence[tuple[str, str]], table: Table) -> list[tuple[str, bool]]:
    """The words of a text with their parts of speech as lemmas, each word of the table a noun where one can stand."""
    words, parts = zip(*tagged, strict=True)
    are_nouns = [letter in "NS" for letter in word_letters(words, parts, table.has)]
    return [(table.singular(word) if noun else word.lower(), noun) for word, noun in zip(words, are_nouns, strict=True)]
