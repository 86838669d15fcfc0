"""Whatever a file of answers or questions holds, the figures are the right ones, or one line says what is wrong."""

import copy
import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mfpo.answer.judge import Judge, JudgeSettings
from mfpo.errors import MfpoError
from mfpo.evaluate import llava_bench as llava
from mfpo.evaluate import mmhal as mm
from mfpo.evaluate import object_halbench as objects
from mfpo.evaluate.amber import amber
from mfpo.evaluate.chair import chair
from mfpo.evaluate.existence import existence
from mfpo.evaluate.pope import SPLITS, pope

Row = dict[str, Any]
HUGE = "huge " * 20_000

YES_NO = [{"question_id": n, "image": f"im{n}.jpg", "text": f"Is there dog {n}?"} for n in range(4)]
LABELLED = [row | {"label": "yes" if row["question_id"] % 2 else "no"} for row in YES_NO]
CAPTIONED = [{"question_id": n, "image": f"im{n}.jpg", "text": "Describe the image."} for n in range(4)]
TRUTH = [{"image_id": f"im{n}.jpg", "objects": ["dog", "person"]} for n in range(4)]
MMHAL = [
    {"question_type": mm.TYPES[n % 8], "image_id": f"m{n}", "image_src": f"http://x/m{n}.jpg", "image_content": ["Dog"]}
    | {"question": f"What is in place {n}.?", "gt_answer": "A dog.", "model_answer": ""}
    for n in range(96)
]
LLAVA = [
    {"question_id": n, "image": f"im{n}.jpg", "category": llava.CATEGORIES[n % 3], "text": f"What about {n}?"}
    for n in range(4)
]
AMBER = [{"id": n, "image": f"im{n}.jpg", "query": f"Is there dog {n}?"} for n in range(4)]
AMBER_TRUTH = [
    {"id": n, "type": "discriminative-hallucination", "truth": "yes" if n % 2 else "no", "hallu": []} for n in range(4)
] + [{"id": n, "type": "generative", "truth": ["dog"], "hallu": ["cat"]} for n in (4, 5)]
DESCRIBE = [{"id": n, "image": f"im{n}.jpg", "query": "Describe the image."} for n in (4, 5)]


class Bench(NamedTuple):
    """The questions as answers name them, the benchmark's files, which of these is mutated, and how it is scored."""

    asked: list[Row]
    files: dict[str, Any]
    main: str
    score: Callable[[Path, Path, "Settings"], Any]
    key: str = "question_id"


class Settings(NamedTuple):
    judge: JudgeSettings
    cache: Path

    def open(self) -> Judge:
        return Judge(self.judge, self.cache)


def score_chair(answers: Path, folder: Path, settings: Settings) -> Any:
    return chair(answers, folder / "truth.jsonl").tallies


def score_existence(answers: Path, folder: Path, settings: Settings) -> Any:
    return existence(answers, folder / "questions.json").tallies


def score_pope(answers: Path, folder: Path, settings: Settings) -> Any:
    named = answers.rename(answers.with_name(f"random.{answers.name}"))
    for split in SPLITS[1:]:
        written(answers.with_name(f"{split}.jsonl"), answers_of(BENCHES["pope"]))
    return pope([named, *answers.parent.glob("[pa]*.jsonl")], folder).tallies


def score_amber(answers: Path, folder: Path, settings: Settings) -> Any:
    return amber(answers, folder).tallies


def score_mmhal(answers: Path, folder: Path, settings: Settings) -> Any:
    return mm.mmhal(answers, folder / "template.json", judge=settings.open()).tallies


def score_llava(answers: Path, folder: Path, settings: Settings) -> Any:
    return llava.llava_bench(answers, folder, judge=settings.open(), official=True).tallies


def score_objects(answers: Path, folder: Path, settings: Settings) -> Any:
    truth, questions = folder / "truth.jsonl", folder / "questions.jsonl"
    return objects.object_halbench(answers, truth, judge=settings.open(), questions=questions).tallies


BENCHES = {
    "chair": Bench(CAPTIONED, {"truth.jsonl": TRUTH}, "truth.jsonl", score_chair, "image"),
    "existence": Bench(YES_NO, {"questions.json": LABELLED}, "questions.json", score_existence),
    "pope": Bench(
        YES_NO, {f"coco_pope_{split}.json": LABELLED for split in SPLITS}, "coco_pope_random.json", score_pope
    ),
    "amber": Bench(
        [{"question_id": row["id"], "image": row["image"], "text": row["query"]} for row in AMBER + DESCRIBE],
        {"annotations.json": AMBER_TRUTH, "query_generative.json": DESCRIBE, "query_discriminative.json": AMBER}
        | {"relation.json": {"dog": ["puppy"], "cat": []}, "safe_words.txt": "sky\n"},
        "annotations.json",
        score_amber,
    ),
    "mmhal": Bench(
        [{"question_id": n, "image": row["image_id"], "text": row["question"]} for n, row in enumerate(MMHAL)],
        {"template.json": MMHAL},
        "template.json",
        score_mmhal,
    ),
    "llava-bench": Bench(
        LLAVA,
        {"qa90_questions.jsonl": LLAVA}
        | {"qa90_gpt4_answer.jsonl": [{"question_id": row["question_id"], "text": "A dog."} for row in LLAVA]}
        | {"caps_boxes_x.jsonl": [{"image": r["image"], "captions": ["A"], "instances": []} for r in LLAVA]}
        | {"rule.json": {kind: {"role": "Assistant", "prompt": "Score."} for kind in llava.CATEGORIES}},
        "qa90_questions.jsonl",
        score_llava,
    ),
    "object-halbench": Bench(
        CAPTIONED,
        {"truth.jsonl": TRUTH, "questions.jsonl": [{"image_id": r["image"], "question": r["text"]} for r in CAPTIONED]},
        "questions.jsonl",
        score_objects,
        "image",
    ),
}
SAID = ("There is a dog and a cat.", "No, only a puppy on a bench.", "Yes", "There is a dog.")


def answers_of(bench: Bench) -> list[Row]:
    return [
        {"question_id": row["question_id"], "image": row["image"], "prompt": row["text"], "text": SAID[n % 4]}
        for n, row in enumerate(bench.asked)
    ]


def lines(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def written(path: Path, rows: Any) -> Path:
    """Lists as their names say: POPE's .json files hold an object a line, the other ones a list."""
    by_line = path.suffix == ".jsonl" or path.name.startswith(("coco_pope", "questions"))
    path.write_text(rows if isinstance(rows, str) else lines(rows) if by_line else json.dumps(rows))
    return path


def reply(prompt: str) -> str:
    """What a judge of any of the three benchmarks says, by the answer."""
    if prompt.rstrip().endswith("Score."):
        return "8 6" if "a dog" in prompt else "8 4"
    if "Rating" in prompt:
        return f"Rating: {5 if 'puppy' in prompt else 1}"
    return '["dog", "cat"]' if "a cat" in prompt else '["dog"]'


@pytest.fixture(scope="module")
def judging(tmp_path_factory: pytest.TempPathFactory, fake_server: Any) -> Iterator[Settings]:
    pytest.importorskip("openai", reason="judges need the openai package: pip install 'mfpo[judge]'")
    with fake_server(reply) as server, pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_API_KEY", raising=False)
        cache = tmp_path_factory.mktemp("judge") / "verdicts.jsonl"
        yield Settings(JudgeSettings(model="judge-1", endpoint=server.url), cache)


def scored(name: str, folder: Path, settings: Settings, answers: Path | None = None, **files: Any) -> Any:
    """The counts behind the figures, with some of the benchmark's files or the answers replaced."""
    bench = BENCHES[name]
    for file, content in (bench.files | files).items():
        written(folder / file, content)
    (folder / "said").mkdir(exist_ok=True)
    path = answers or written(folder / "said" / "answers.jsonl", answers_of(bench))
    return {figure: dict(sorted(tally.units.items())) for figure, tally in bench.score(path, folder, settings).items()}


def check_message(error: MfpoError) -> None:
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1
    assert HUGE[:200] not in message
    assert len(message) < 1200


def each(change: Callable[[Row], Row]) -> Callable[[list[Row], str], str]:
    return lambda rows, key: lines(change(row) for row in rows)


def one(key: str | None, value: Any) -> Callable[[list[Row], str], str]:
    """The second row with another value under `key`, or under what names its question or image."""
    return lambda rows, name: lines([rows[0], rows[1] | {key or name: value}, *rows[2:]])


def without(key: str | None, row: Row, name: str = "") -> Row:
    return {other: value for other, value in row.items() if other != (key or name)}


def renamed(row: Row, key: str, to: str) -> Row:
    return without(key, row) | {to: row[key]}


# By name: what the file is called, what it holds, and whether the figures stay or it is refused.
ANSWERS: dict[str, tuple[str, Callable[[list[Row], str], str | bytes], bool]] = {
    "unchanged": ("a.jsonl", each(lambda row: row), True),
    "ids as texts": ("a.jsonl", each(lambda row: row | {"question_id": str(row["question_id"])}), True),
    "id instead of question_id": ("a.jsonl", each(lambda row: renamed(row, "question_id", "id")), True),
    "image_id instead of image": ("a.jsonl", each(lambda row: renamed(row, "image", "image_id")), True),
    "response instead of text": ("a.jsonl", each(lambda row: renamed(row, "text", "response")), True),
    "caption instead of text": ("a.jsonl", each(lambda row: renamed(row, "text", "caption")), True),
    "more keys": ("a.jsonl", each(lambda row: {"x": [[None, {"y": HUGE}]], "answer_id": 1.5, **row}), True),
    "no prompt": ("a.jsonl", each(lambda row: without("prompt", row)), True),
    "prompt null": ("a.jsonl", each(lambda row: row | {"prompt": None}), True),
    "longer prompt": ("a.jsonl", each(lambda row: row | {"prompt": f"<image>\n{row['prompt']} Be brief."}), True),
    "no error": ("a.jsonl", each(lambda row: row | {"error": None, "label": None}), True),
    "thoughts": ("a.jsonl", each(lambda r: r | {"text": f"<think>No, a cat.\n</think>\n\n{r['text']}"}), True),
    "thoughts, opened by the template": ("a.jsonl", each(lambda r: r | {"text": f"A cat.</THINK>{r['text']}"}), True),
    "other order": ("a.jsonl", lambda rows, key: lines(rows[::-1]), True),
    "blank lines": ("a.jsonl", lambda rows, key: "\n \n" + "\n\n".join(map(json.dumps, rows)) + "\n\n\t\n", True),
    "no last line end": ("a.jsonl", lambda rows, key: lines(rows)[:-1], True),
    "CRLF": ("a.jsonl", lambda rows, key: lines(rows).replace("\n", "\r\n"), True),
    "BOM": ("a.jsonl", lambda rows, key: "\ufeff" + lines(rows), True),
    "list": ("a.json", lambda rows, key: json.dumps(rows), True),
    "list over lines, BOM": ("a.json", lambda rows, key: "\ufeff\n" + json.dumps(rows, indent=2), True),
    "lines in .json": ("a.json", lambda rows, key: lines(rows), True),
    "gz": ("a.jsonl.gz", lambda rows, key: gzip.compress(lines(rows).encode()), True),
    "list, gz": ("a.json.gz", lambda rows, key: gzip.compress(json.dumps(rows).encode()), True),
    "list in .jsonl": ("a.jsonl", lambda rows, key: json.dumps(rows), True),
    "list of lists": ("a.json", lambda rows, key: json.dumps([rows]), False),
    "empty list": ("a.json", lambda rows, key: "[]", False),
    "empty": ("a.jsonl", lambda rows, key: "", False),
    "cut": ("a.jsonl", lambda rows, key: lines(rows)[:-20], False),
    "list, cut": ("a.json", lambda rows, key: json.dumps(rows)[:-20], False),
    "gz, cut": ("a.jsonl.gz", lambda rows, key: gzip.compress(lines(rows).encode())[:-20], False),
    "no gz": ("a.jsonl.gz", lambda rows, key: lines(rows), False),
    "no UTF-8": ("a.jsonl", lambda rows, key: lines(rows).encode("utf-16"), False),
    "brackets without end": ("a.jsonl", lambda rows, key: lines(rows) + "[" * 100_000, False),
    "a number without end": ("a.jsonl", lambda rows, key: lines(rows) + '{"question_id": ' + "9" * 5000 + "}", False),
    "a list among the lines": ("a.jsonl", lambda rows, key: lines([*rows, [1]]), False),
    "a text among the lines": ("a.jsonl", lambda rows, key: lines([*rows, HUGE]), False),
    "null among the lines": ("a.jsonl", lambda rows, key: lines([*rows, None]), False),
    "empty object": ("a.jsonl", lambda rows, key: lines([*rows, {}]), False),
    "row twice": ("a.jsonl", lambda rows, key: lines([*rows, rows[0]]), False),
    "no name": ("a.jsonl", lambda rows, key: lines([without(None, rows[0], key), *rows[1:]]), False),
    "name null": ("a.jsonl", one(None, None), False),
    "name empty": ("a.jsonl", one(None, ""), False),
    "name a float": ("a.jsonl", one(None, 1.0), False),
    "name nan": ("a.jsonl", one(None, math.nan), False),
    "name true": ("a.jsonl", one(None, True), False),
    "name a list": ("a.jsonl", one(None, [HUGE]), False),
    "name an object": ("a.jsonl", one(None, {"a": HUGE}), False),
    "name unknown": ("a.jsonl", one(None, "nobody"), False),
    "name of two lines": ("a.jsonl", one(None, "a\nb\r\x85\u2028c"), False),
    "name huge": ("a.jsonl", one(None, HUGE), False),
    "half a surrogate": ("a.jsonl", one(None, "\ud800"), False),
    "no text": ("a.jsonl", lambda rows, key: lines([*rows[:-1], without("text", rows[-1])]), False),
    "text null": ("a.jsonl", one("text", None), False),
    "text a number": ("a.jsonl", one("text", 7), False),
    "text a list": ("a.jsonl", one("text", ["Yes"]), False),
    "text an object": ("a.jsonl", one("text", {"value": "Yes"}), False),
    "error": ("a.jsonl", one("error", HUGE), False),
    "another image": ("a.jsonl", one("image", "elsewhere.jpg"), False),
    "image a list": ("a.jsonl", one("image", [HUGE]), False),
    "another prompt": ("a.jsonl", one("prompt", HUGE), False),
    "prompt a list": ("a.jsonl", one("prompt", [[HUGE]]), False),
    "prompt a number": ("a.jsonl", one("prompt", 3), False),
    "label unknown": ("a.jsonl", one("label", HUGE), False),
    "label a number": ("a.jsonl", one("label", 1), False),
    "another label": ("a.jsonl", one("label", "no"), False),
}
# Where a benchmark does not know or ask what others do.
OTHERWISE = {
    ("chair", "another prompt"): True,
    ("mmhal", "another image"): True,  # users name MMHal-Bench's images as they like
    ("mmhal", "no name"): True,  # its image names the question too
    ("mmhal", "name null"): True,
    ("mmhal", "name unknown"): True,
    ("mmhal", "name of two lines"): True,
    ("mmhal", "name huge"): True,
    ("mmhal", "half a surrogate"): True,
} | {(name, "another label"): True for name in BENCHES if name not in ("existence", "pope")}


@pytest.mark.parametrize("name", BENCHES)
def test_mutated_answers(name: str, judging: Settings, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    good = scored(name, tmp_path / "good", judging)
    assert len({str(units) for units in good.values()}) > 1
    wrong = []
    for mutation, (file, change, stays) in ANSWERS.items():
        folder = tmp_path / mutation.replace(",", "")
        (folder / "said").mkdir(parents=True)
        content = change(copy.deepcopy(answers_of(BENCHES[name])), BENCHES[name].key)
        path = folder / "said" / file
        path.write_bytes(content if isinstance(content, bytes) else content.encode(errors="surrogatepass"))
        try:
            found = scored(name, folder, judging, path)
        except MfpoError as error:
            check_message(error)
            found = None
        if found != (good if OTHERWISE.get((name, mutation), stays) else None):
            wrong.append(mutation)
    assert wrong == []


VALUES: list[Any] = [
    None,
    True,
    7,
    1.5,
    math.nan,
    "",
    "nobody",
    "a\nb\x85c",
    "\ud800",
    HUGE,
    [],
    {},
    [[None]],
    {"a": [1]},
]


@pytest.mark.parametrize(
    ("name", "file"),
    [(name, file) for name, bench in BENCHES.items() for file, rows in bench.files.items() if isinstance(rows, list)],
)
def test_mutated_questions(name: str, file: str, judging: Settings, tmp_path: Path) -> None:
    """Another value may be another question: what is asked is a figure or a line that says what is wrong."""
    rows = BENCHES[name].files[file]
    mutated: list[Any] = [without(key, rows[1]) for key in rows[1]]
    mutated += [rows[1] | {key: value} for key in rows[1] for value in VALUES]
    contents: list[Any] = [[rows[0], row, *rows[2:]] for row in [*mutated, *VALUES]]
    contents += [rows[:-1], [*rows, rows[-1]], rows[::-1], [rows], {"a": rows}, [], "", "[", "null", '"', "[" * 99_999]
    contents += [lines(rows)[:-9], json.dumps(rows)[:-9], HUGE]
    assert len(contents) > 30
    refused = []
    for number, content in enumerate(contents):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            assert scored(name, folder, judging, **{file: content})
        except MfpoError as error:
            check_message(error)
            refused.append(number)
    assert len(refused) > 20


@pytest.mark.parametrize("name", [name for name, bench in BENCHES.items() if bench.main.endswith("s.jsonl")])
@pytest.mark.parametrize("change", ["\ufeff{}", "\n\n{}\n \n"])
def test_harmless_questions(name: str, change: str, judging: Settings, tmp_path: Path) -> None:
    (tmp_path / "good").mkdir()
    (tmp_path / "changed").mkdir()
    bench = BENCHES[name]
    content = change.replace("{}", lines(bench.files[bench.main][::-1]))
    good = scored(name, tmp_path / "good", judging)
    assert scored(name, tmp_path / "changed", judging, **{bench.main: content}) == good
