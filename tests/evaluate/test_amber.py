"""AMBER by hand, and against a plain reading of the official script's formulas on answers to all 15,220 questions."""

import json
import random
import shutil
from dataclasses import replace
from operator import eq

import numpy as np
import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate import amber_words
from mfpo.evaluate.amber import AmberData, AmberQuestion, amber, describe, load_amber
from mfpo.evaluate.amber_answers import read_amber_answers
from mfpo.evaluate.amber_words import Reading, similar_by_spacy, words_finder
from mfpo.evaluate.answers import Answer, read_answers
from mfpo.evaluate.figures import figure_of

SMALL = AmberData(
    {
        "1": AmberQuestion("AMBER_1.jpg", "generative", ("forest", "dog", "tree"), ("bird", "cat")),
        "2": AmberQuestion("AMBER_2.jpg", "generative", ("dog",), ("person",)),
        "3": AmberQuestion("AMBER_1.jpg", "discriminative-hallucination", "no"),
        "4": AmberQuestion("AMBER_1.jpg", "discriminative-attribute-state", "yes"),
        "5": AmberQuestion("AMBER_1.jpg", "discriminative-attribute-state", "no"),
        "6": AmberQuestion("AMBER_2.jpg", "relation", "no"),
    },
    {"forest": ("tree", "leave"), "dog": (), "tree": (), "bird": ("duck",), "cat": (), "person": ("man",), "car": ()},
    frozenset({"light"}),
)


@pytest.fixture(scope="module")
def folder(reference_data):
    return reference_data / "amber"


@pytest.fixture(scope="module")
def benchmark(folder):
    return load_amber(folder)


def by_words(benchmark):
    return Reading("words", "string", words_finder(benchmark.words), eq)


def answer(question_id, text, image=None):
    return Answer(str(question_id), image, None, text)


def test_descriptions_that_are_all_yes_or_no_are_refused():
    with pytest.raises(MfpoError, match="all 2 answers begin with yes or no"):
        amber([answer(1, "Yes"), answer(2, "No.")], SMALL, by_words(SMALL), allow_missing=True)


def test_without_what_the_script_begins_with_shares_are_plain():
    given = [answer(1, "A dog and a car."), answer(2, "A person."), answer(3, "No"), answer(4, "No"), answer(5, "No")]
    result = amber(given, SMALL, by_words(SMALL), allow_missing=True)
    assert [figure_of(result.compared[f"generative.{name}"]).value for name in ("chair", "hal")] == [
        pytest.approx(200 / 3),
        100,
    ]
    assert figure_of(result.compared["discriminative.accuracy"]).value == pytest.approx(200 / 3)
    assert figure_of(result.compared["discriminative.existence.precision"]).value == 100
    assert figure_of(amber(given[:1], SMALL, by_words(SMALL), allow_missing=True).compared["generative.cog"])


def values(result, prefix):
    return {name.removeprefix(prefix): figure_of(tally).rounded(1).value for name, tally in result.tallies.items()
            if name.startswith(prefix)}  # fmt: skip


def official(answers, annotations, relation, safe_words):
    """The printed figures of the official script, read plainly: one answer after the other, one list an answer.

    `answers` maps ids to lists of nouns or to texts; equal strings are the only similar ones.
    """
    chair, cover, cog, clean, described = [0, 0.001], [0, 0.001], [0, 0.001], 0, 0.001
    vocabulary = set(relation) | {word for words in relation.values() for word in words}
    verdicts = []
    for entry in annotations:
        given = answers[entry["id"]]
        if entry["type"] != "generative":
            verdicts.append((entry["type"], entry["truth"], given))
            continue
        nouns = [noun for noun in given if noun in vocabulary]
        truth, likely = entry["truth"], entry["hallu"]
        # An object's neighbours are looked through before the objects themselves.
        owners_safe = [(word, i) for i, t in enumerate(truth) for word in relation[t]] + [
            (t, i) for i, t in enumerate(truth)
        ]
        owners_bad = [(word, i) for i, t in enumerate(likely) for word in relation[t]] + [
            (t, i) for i, t in enumerate(likely)
        ]
        hit, imagined, wrong = [0] * len(truth), [0] * len(likely), 0
        for noun in nouns:
            if noun in safe_words:
                continue
            found = [i for word, i in owners_safe if word == noun]
            if found:
                hit[found[0]] = 1
                continue
            found = [i for word, i in owners_bad if word == noun]
            if found:
                imagined[found[0]] = 1
            wrong += 1
        chair[0] += wrong
        chair[1] += len(nouns)
        cover[0] += sum(hit)
        cover[1] += len(hit)
        cog[0] += sum(imagined)
        cog[1] += len(imagined)
        clean += wrong == 0
        described += 1
    figures = {f"generative.{name}": round(100 * a / b, 1) for name, (a, b) in
               {"chair": chair, "cover": cover, "cog": cog}.items()}  # fmt: skip
    figures["generative.hal"] = round(100 - 100 * clean / described, 1)
    groups = {"": "", "existence.": "discriminative-hallucination", "attribute.": "discriminative-attribute",
              "attribute.state.": "discriminative-attribute-state", "relation.": "relation",
              "attribute.number.": "discriminative-attribute-number",
              "attribute.action.": "discriminative-attribute-action"}  # fmt: skip
    for prefix, kind in groups.items():
        chosen = [v for v in verdicts if kind in v[0]]
        right = sum(text == truth.capitalize() for _, truth, text in chosen)
        both = sum(text == "No" and truth == "no" for _, truth, text in chosen)
        begin = 3 * 0.001 if prefix == "attribute." else 0.001
        p = round(100 * both / (sum(text == "No" for _, _, text in chosen) + begin), 1)
        r = round(100 * both / (sum(truth == "no" for _, truth, _ in chosen) + begin), 1)
        constant = 0.001 if prefix == "existence." else 0.0001
        figures |= {f"discriminative.{prefix}accuracy": round(100 * right / (len(chosen) + begin), 1)}
        figures |= {f"discriminative.{prefix}precision": p, f"discriminative.{prefix}recall": r}
        f1 = 2 * (p / 100) * (r / 100) / (p / 100 + r / 100 + constant) * 100
        figures |= {f"discriminative.{prefix}f1": round(f1, 1)}
    return figures


def synthetic(folder, wrong):
    """Answers to all questions, each part of them wrong with chance `wrong`: the objects named, and yes or no."""
    annotations = json.loads((folder / "annotations.json").read_text())
    relation = json.loads((folder / "relation.json").read_text())
    listed = sorted((set(relation) | {word for words in relation.values() for word in words}) - {"can", "hot"})
    draw = random.Random(int(100 * wrong))
    answers = {}
    for entry in annotations:
        if entry["type"] == "generative":
            named = [draw.choice([word, *relation[word]]) for word in entry["truth"] if draw.random() < 0.7]
            named += [draw.choice([word, *relation[word]]) for word in entry["hallu"] if draw.random() < wrong]
            named += [draw.choice(listed) for _ in range(8) if draw.random() < wrong]
            answers[entry["id"]] = [word for word in named if word not in ("can", "hot")]
        else:
            is_yes = (entry["truth"] == "yes") != (draw.random() < wrong)
            answers[entry["id"]] = "Yes" if is_yes else "No"
            if draw.random() < wrong / 2:
                answers[entry["id"]] = draw.choice(["No.", "yes", "Yes, there is.", "", "I am not sure"])
    return answers, annotations, relation


@pytest.mark.parametrize("wrong", [0.0, 0.3, 0.8, 1.0])
def test_all_15220_questions_give_the_official_figures(folder, benchmark, tmp_path, wrong):
    answers, annotations, relation = synthetic(folder, wrong)
    rows = [
        {"id": name, "response": given if isinstance(given, str) else "".join(f"There is a {noun}. " for noun in given)}
        for name, given in answers.items()
    ]
    (tmp_path / "answers.json").write_text(json.dumps(rows))
    result = amber(read_answers(tmp_path / "answers.json"), benchmark, by_words(benchmark))
    slow = official(answers, annotations, relation, (folder / "safe_words.txt").read_text().split("\n"))
    ours = {name: figure_of(tally).rounded(1).value for name, tally in result.tallies.items() if "free" not in name}
    assert len(slow) == 4 + 7 * 4
    assert ours == pytest.approx(slow, abs=1e-9)
    assert result.counts["generative"]["answers"] + result.counts["discriminative"]["answers"] == 15_220


def test_perfect_and_empty_answers(folder, benchmark):
    annotations = json.loads((folder / "annotations.json").read_text())
    perfect = [
        answer(e["id"], ", ".join(e["truth"]) if e["type"] == "generative" else e["truth"].capitalize())
        for e in annotations
    ]
    result = amber(perfect, benchmark, by_words(benchmark))
    assert values(result, "generative.")["chair"] == values(result, "generative.")["hal"] == 0
    # Repeated objects, and those that are also another's neighbour, are never covered in the official script.
    assert 90 < values(result, "generative.")["cover"] < 100
    assert values(result, "discriminative.")["accuracy"] == 100
    empty = amber([replace(given, text="") for given in perfect], benchmark, by_words(benchmark))
    assert {tally: figure_of(empty.tallies[tally]).value for tally in empty.tallies if "hal" not in tally} == (
        dict.fromkeys((tally for tally in empty.tallies if "hal" not in tally), 0)
    )
    assert empty.counts["discriminative"]["unreadable"] == empty.counts["discriminative"]["empty"] == 14_216


def test_one_description_by_hand():
    found = describe(
        "A duck, two dogs, a tree, light, a car and a unicorn.", SMALL.questions["1"], SMALL, by_words(SMALL)
    )
    assert found.objects == ("duck", "dog", "tree", "car")  # "light" and "unicorn" are in no list of objects
    assert found.hallucinated == ("duck", "car")
    # The tree is a neighbour of the forest, which comes first: it covers the forest, and the tree stays uncovered.
    assert found.covered == {0, 1}
    assert found.cog == {0}


def test_figures_by_hand():
    result = amber([answer(1, "A duck, a dog, a car."), answer(2, "A dog.")], SMALL, by_words(SMALL))
    # 2 of 4 objects wrong; 2 of 4 true ones named; 1 of 2 descriptions wrong; 1 of 3 likely ones imagined.
    assert values(result, "generative.") == {"chair": 50.0, "cover": 50.0, "hal": 50.0, "cog": 33.3}
    assert values(result, "discriminative.") == {}


def test_no_is_the_positive_class():
    texts = {3: "No", 4: "No", 5: "Yes", 6: "No."}
    result = amber([answer(*item) for item in texts.items()], SMALL, by_words(SMALL))
    found = values(result, "discriminative.")
    # Of two exact "No" one is right; of three questions with "no" one has it. "No." is not "No".
    assert (found["accuracy"], found["precision"], found["recall"]) == (25.0, 50.0, 33.3)
    assert found["f1"] == round(2 * 50 * 33.3 / (50 + 33.3 + 0.01), 1) == 40.0
    assert (found["relation.accuracy"], found["free_text.accuracy"], found["free_text.recall"]) == (0, 50, 66.6)
    assert result.counts["discriminative"]["neither_yes_nor_no"] == 1
    assert result.counts["discriminative"]["unreadable"] == 0


def test_counts_of_attributes_begin_three_times():
    """The script adds up those of state, number and action, each of which begins with 0.001."""
    found = values(
        amber([answer(4, "Yes"), answer(5, "No")], SMALL, by_words(SMALL), allow_missing=True), "discriminative."
    )
    assert (found["attribute.recall"], found["attribute.precision"]) == (99.7, 99.7)  # 1 / 1.003
    assert (found["attribute.accuracy"], found["attribute.state.recall"]) == (99.9, 99.9)  # 2 / 2.003, 1 / 1.001
    assert found["attribute.f1"] == 99.7


def test_a_safe_word_counts_as_an_object_but_never_as_wrong():
    benchmark = replace(SMALL, safe=frozenset({"car"}))
    found = describe("a car", benchmark.questions["2"], benchmark, by_words(benchmark))
    assert (found.objects, found.hallucinated) == (("car",), ())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("dogs and people", ["dog", "people"]),
        ("Dogs. A Dog.", []),  # as in the official script
        ("a hotdog, a dog-like thing, underdogs", []),
        ("You can see a hot plate", []),
        ("trees with leaves", ["tree"]),
        ("glasses on shelves, dog's", ["glass", "shelf", "dog"]),
    ],
)
def test_words_that_are_found(text, found):
    words = frozenset(["dog", "people", "person", "can", "hot", "tree", "leave", "glass", "shelf"])
    assert words_finder(words)(text) == found


def test_every_listed_word_is_found(benchmark):
    find = words_finder(benchmark.words)
    for word in benchmark.words - {"can", "hot"}:
        assert find(f"There is a {word}.") == [word]


def test_similarity_by_vectors_of_a_real_pipeline(tmp_path):
    spacy = pytest.importorskip("spacy")
    pipeline = spacy.blank("en")
    for word, vector in {"dog": [1, 0.1], "puppy": [1, 0.2], "cat": [0.5, 1], "bird": [0, 1]}.items():
        pipeline.vocab.set_vector(word, np.array(vector, dtype=np.float32))
    pipeline.to_disk(tmp_path / "vectors")
    similar = similar_by_spacy(str(tmp_path / "vectors"))
    assert similar("dog", "puppy")  # cosine 0.995
    assert not similar("dog", "cat")  # 0.53
    assert not similar("dog", "unknown")
    assert similar("unknown", "unknown")
    benchmark = replace(SMALL, association=SMALL.association | {"puppy": ()})
    reading = Reading("words", "vectors", words_finder(benchmark.words), similar)
    found = describe("a puppy, a bird and a cat", SMALL.questions["1"], benchmark, reading)
    # The cat's vector is near to the bird's (0.89), which comes first.
    assert (found.hallucinated, found.covered, found.cog) == (("bird", "cat"), {1}, {0, 1})


def test_words_are_similar_above_a_cosine_of_08(tmp_path):
    spacy = pytest.importorskip("spacy")
    draw = np.random.default_rng(0)
    vectors = {word: draw.normal(1, 0.6, 3).astype(np.float32) for word in "abcdefghijkl"}
    pipeline = spacy.blank("en")
    for word, vector in vectors.items():
        pipeline.vocab.set_vector(word, vector)
    pipeline.to_disk(tmp_path)
    similar = similar_by_spacy(str(tmp_path))
    unit = {word: vector / np.linalg.norm(vector) for word, vector in vectors.items()}
    cosines = {(one, other): unit[one] @ unit[other] for one in unit for other in unit}
    assert 20 < sum(cosine > 0.8 for cosine in cosines.values()) < 124
    assert {pair for pair in cosines if similar(*pair)} == {pair for pair, cosine in cosines.items() if cosine > 0.8}


@pytest.mark.parametrize(
    ("nltk", "spacy", "expected"),
    [
        (False, False, ("words", "string", False)),
        (True, False, ("nltk", "string", False)),
        (False, True, ("words", "en_core_web_lg", False)),
        (True, True, ("nltk", "en_core_web_lg", True)),
    ],
)
def test_what_is_installed_is_said(nltk, spacy, expected, monkeypatch):
    monkeypatch.setattr(amber_words, "_has_nltk", lambda: nltk)
    monkeypatch.setattr(amber_words, "find_spec", lambda name: spacy or None)
    monkeypatch.setattr(amber_words, "similar_by_spacy", lambda name: str.__eq__)
    reading = amber_words.open_reading(frozenset({"dog"}))
    assert (reading.nouns, reading.similarity, reading.official) == expected


def test_json():
    texts = {1: "A duck, a dog, a car.", 2: "A dog.", 3: "No", 4: "Yes", 5: "No", 6: ""}
    result = amber([answer(*item) for item in texts.items()], SMALL, by_words(SMALL))
    written = json.loads(json.dumps(result.json()))
    assert (written["official"], written["nouns"], written["similarity"]) == (False, "words", "string")
    assert written["generative"]["chair"]["value"] == 50
    assert written["generative"]["chair"]["n"] == written["generative"]["answers"] == 2
    discriminative = written["discriminative"]
    assert discriminative["attribute"]["state"]["accuracy"]["n"] == 2
    assert discriminative["existence"]["recall"]["value"] == 99.9  # 1 / 1.001
    assert (discriminative["empty"], discriminative["unreadable"], discriminative["missing"]) == (1, 1, 0)
    assert "number" not in discriminative["attribute"]
    assert written["details"][0] == {"id": "1", "objects": ["duck", "dog", "car"], "hallucinated": ["duck", "car"]}


def test_missing_answers_are_an_error_or_counted():
    with pytest.raises(MfpoError, match=r"3 without an answer \(4, 5, 6\); .*allow_missing=true"):
        amber([answer(3, "No")], SMALL, by_words(SMALL))
    result = amber([answer(3, "No")], SMALL, by_words(SMALL), allow_missing=True)
    assert result.counts["discriminative"]["missing"] == 3
    assert figure_of(result.tallies["discriminative.accuracy"]).n == 1


@pytest.mark.parametrize("kind", ["generative", "discriminative"])
def test_a_kind_whose_answers_all_failed_is_counted(kind):
    failed, well = ({1, 2}, {3: "No"}) if kind == "generative" else ({3, 4}, {1: "A dog."})
    answers = [Answer(str(n), None, None, "", failed=True) for n in failed]
    written = amber(
        [*answers, *(answer(*item) for item in well.items())], SMALL, by_words(SMALL), allow_missing=True
    ).json()
    assert (written[kind]["answers"], written[kind]["missing"]) == (0, 2 if kind == "generative" else 4)
    assert "chair" not in written["generative"] or kind == "discriminative"


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        (
            [answer(1, "a"), answer(1, "a"), answer(99, "b")],
            r"1 not in the questions \(99\); 1 answered more than once",
        ),
        ([Answer(None, "AMBER_1.jpg", None, "a")], "1 of 1 answers have no question_id"),
        ([answer(1, "a", "COCO_val2014_000000310196.jpg")], "1 of 1 answers have a different image or prompt .*1"),
        ([answer(3, "a", "image/AMBER_2.jpg")], "different image"),
        ([], "no answer"),
    ],
)
def test_answers_that_are_not_ambers(answers, fault):
    with pytest.raises(MfpoError, match=fault):
        amber(answers, SMALL, by_words(SMALL))


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("annotations.json", "{}", r"does not hold AMBER's files \(annotations.json: no list\)"),
        ("annotations.json", "[1]", "does not hold AMBER's files"),
        (
            "annotations.json",
            '[{"id": 1, "type": "generative", "truth": ["sky"], "hallu": []}]',
            "15219 ids are only in",
        ),
        ("annotations.json", '[{"id": 1, "type": "x", "truth": "no"}]', "id 1 has type x"),
        ("query_generative.json", '[{"id": 1}]', "does not hold AMBER's files"),
        ("query_generative.json", "[]", r"1004 ids are only in annotations.json .*1, 10, 100 and 1001 more"),
        ("relation.json", '{"sky": []}', r"objects of annotations.json are not in relation.json"),
        ("relation.json", "[]", r"does not hold AMBER's files \(relation.json: no object\)"),
        ("relation.json", "{", "not valid JSON"),
    ],
)
def test_files_of_another_form_or_version(folder, tmp_path, name, content, fault):
    copy = tmp_path / "amber"
    copy.mkdir()
    for path in folder.iterdir():
        shutil.copyfile(path, copy / path.name)
    (copy / name).write_text(content)
    with pytest.raises(MfpoError, match=fault):
        load_amber(copy)


def test_the_folder_as_ambers_repository_has_it(folder, benchmark, tmp_path):
    for path in folder.iterdir():
        copy = tmp_path / ("query" if path.name.startswith("query_") else "") / path.name
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, copy)
    assert load_amber(tmp_path) == benchmark


def test_answers_to_other_questions_of_the_same_image(benchmark):
    asked = benchmark.questions["1005"]
    assert (asked.image, asked.text, benchmark.questions["1"].text) == (
        "AMBER_1.jpg",
        "Is the sky sunny in this image?",
        "",
    )
    given = Answer("1006", asked.image, asked.text, "Yes")
    with pytest.raises(MfpoError, match=r"different image or prompt .*\(1006\)"):
        amber([given], benchmark, by_words(benchmark), allow_missing=True)
    described = Answer("1", asked.image, "Tell me all about it.", "A sky.")  # in other words
    assert amber([described], benchmark, by_words(benchmark), allow_missing=True).counts["generative"]["answers"] == 1


def test_a_folder_without_ambers_files(tmp_path):
    with pytest.raises(MfpoError, match=r"annotations\.json: cannot be read"):
        load_amber(tmp_path)


@pytest.mark.parametrize("extra", [{"target": "x"}, {"category": "generative"}])
def test_a_column_of_ones_own_is_no_other_tools(tmp_path, extra):
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": 1, "response": "a dog", **extra}))
    (read,) = read_amber_answers(tmp_path / "a.jsonl", SMALL.questions)
    assert (read.question_id, read.text) == ("1", "a dog")
