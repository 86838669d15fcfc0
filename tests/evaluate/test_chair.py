"""CHAIR by hand, against a slow reading of the official algorithm, and on the captions of real models."""

import gzip
import json
from functools import partial

import pytest

from mfpo.errors import MfpoError
from mfpo.evaluate.answers import Answer, read_answers
from mfpo.evaluate.chair import chair
from mfpo.evaluate.chair_official import OfficialTable, official_classes, read_official_table
from mfpo.evaluate.figures import paired_differences
from mfpo.truth import load_annotations, prepare_truth

# CHAIR_s, CHAIR_i and recall as the official script prints them, with more digits.
REAL = {
    "shikra": (55.6, 15.5116, 77.6903),
    "minigpt4": (29.0, 9.2387, 62.2703),
    "instructblip": (57.2, 22.7106, 68.8630),
}


def caption(image_id, text):
    return Answer(None, image_id, None, text)


@pytest.fixture(scope="module")
def truth(reference_data):
    return load_annotations(reference_data / "chair" / "coco2014_objects.jsonl.gz")


def captions_of(reference_data, model):
    return read_answers(reference_data / "chair" / f"captions_{model}_greedy.jsonl")


@pytest.fixture(scope="module")
def published(reference_data):
    return reference_data / "chair" / "coco_synonyms.json"


def test_three_captions_by_hand():
    truth = {"1": frozenset({"dog", "frisbee", "person"}), "2": frozenset({"cat"}), "3": frozenset()}
    result = chair(
        [
            caption("1", "A dog, a dog and a cat chase a frisbee."),  # 4 mentions, 1 wrong; finds 2 of 3
            caption("2", "A kitten."),  # 1 mention; finds 1 of 1
            caption("COCO_val2014_000000000003.jpg", "Two cars and a car on a road."),  # 2 mentions, both wrong
        ],
        truth,
    )
    assert result["chair_s"] == pytest.approx(100 * 2 / 3)
    assert result["chair_i"] == pytest.approx(100 * 3 / 7)
    assert result["recall"] == pytest.approx(100 * 3 / 4)
    assert result["length"] == pytest.approx((10 + 2 + 8) / 3)
    assert (result.facts["captions"], result.facts["mentions"]) == (3, 7)
    assert result.captions[0].hallucinated == ("cat",)
    assert result.captions[0].found == {"dog", "frisbee"}


def test_captions_that_name_nothing_score_0():
    result = chair([caption("1", "")], {"1": frozenset()})
    assert (result["chair_s"], result["chair_i"], result["recall"], result["length"], result.facts["mentions"]) == (
        0,
        0,
        0,
        0,
        0,
    )


def test_the_captions_of_one_image_are_drawn_together():
    # Two captions an image, both wrong or both right: 20 images, not 40 captions, are what the interval rests on.
    truth = {str(image): frozenset({"dog"} if image % 2 else {"cat"}) for image in range(1, 21)}
    answers = [Answer(f"{image}-{turn}", image, None, "A dog.") for image in truth for turn in (1, 2)]
    figure = chair(answers, truth).figures["chair_s"]
    half = 100 * 1.96 * (0.25 / 20) ** 0.5
    assert (figure.value, figure.n) == (50, 20)
    assert (figure.low, figure.high) == pytest.approx((50 - half, 50 + half), abs=5)


def test_captions_without_annotations_are_counted_when_allowed():
    answers = [caption("1", "A cat."), caption("2", ""), caption("9", "A dog."), Answer("q7", None, None, "A dog.")]
    result = chair(answers, {"1": frozenset(), "2": frozenset()}, allow_missing=True)
    assert (result.facts["captions"], result.facts["missing"], result.facts["empty"], result["chair_s"]) == (
        2,
        2,
        1,
        50,
    )
    with pytest.raises(MfpoError, match="2 of 2 captions have images without annotations"):
        chair(answers[2:], {"1": frozenset()}, allow_missing=True)


def test_double_captions_are_named():
    with pytest.raises(MfpoError, match=r"appear more than once: 1;"):
        chair([caption("1", "A dog."), caption("000001.jpg", "A cat.")], {"1": frozenset()})
    with pytest.raises(MfpoError, match=r"appear more than once: 1 \(question 5\);"):
        chair([Answer("5", "1", None, "A dog."), Answer("5", "1", None, "A dog.")], {"1": frozenset()})


def test_models_that_saw_other_images_are_not_compared(reference_data, truth):
    a, b = (chair(captions_of(reference_data, model), truth).tallies for model in ("minigpt4", "instructblip"))
    with pytest.raises(MfpoError, match="chair_s: 988 ids are scored in only one of the two"):
        paired_differences(a, b)


def test_truth_from_instances_and_captions(tmp_path):
    images = [
        {"id": 7, "file_name": "COCO_val2014_000000000007.jpg"},
        {"id": 8, "file_name": "COCO_val2014_000000000008.jpg"},
    ]
    categories = [{"id": 18, "name": "dog"}, {"id": 44, "name": "bottle"}]
    instances = {"images": images, "categories": categories, "annotations": [{"image_id": 7, "category_id": 18}]}
    captions = {
        "images": images,
        "annotations": [
            {"image_id": 7, "caption": "A puppy and its frisbees."},
            {"image_id": 7, "caption": "A man plays."},
            {"image_id": 8, "caption": "An empty street."},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(instances))
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    for name in ("truth.jsonl", "truth.jsonl.gz"):
        assert prepare_truth([tmp_path / "instances.json"], [tmp_path / "captions.json"], tmp_path / name) == 2
        assert load_annotations(tmp_path / name) == {"7": {"dog", "frisbee", "person"}, "8": set()}
    out = tmp_path / "official.jsonl"
    table = OfficialTable({"dog": "dog", "frisbee": "frisbee", "bus": "bus"}, {})
    captions["annotations"].append({"image_id": 8, "caption": "A bus and two buses."})
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    files = [tmp_path / "instances.json"], [tmp_path / "captions.json"]
    assert prepare_truth(*files, out, partial(official_classes, table=table)) == 2
    # Neither "puppy" nor "man" is in the table; "buses" becomes "bus".
    assert load_annotations(out) == {"7": {"dog", "frisbee"}, "8": {"bus"}}
    out = tmp_path / "other.jsonl"
    with pytest.raises(MfpoError, match=r"instances\.json: is not a COCO captions file \(caption is missing\)"):
        prepare_truth([tmp_path / "instances.json"], [tmp_path / "instances.json"], out)
    with pytest.raises(MfpoError, match=r"captions\.json: is not a COCO instances file \(categories is missing\)"):
        prepare_truth([tmp_path / "captions.json"], [], out)
    captions["annotations"].append({"image_id": 9, "caption": "A boat."})
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    with pytest.raises(MfpoError, match=r"\(it has annotations of 9, but no entry with this id\)"):
        prepare_truth([tmp_path / "instances.json"], [tmp_path / "captions.json"], out)
    (tmp_path / "captions.json").write_text("[[1]]")
    with pytest.raises(MfpoError, match=r"\(its parts are not lists of objects\)"):
        prepare_truth([tmp_path / "instances.json"], [tmp_path / "captions.json"], out)
    with pytest.raises(MfpoError, match=r"truth\.jsonl exists already"):
        prepare_truth([tmp_path / "instances.json"], [], tmp_path / "truth.jsonl")
    with pytest.raises(MfpoError, match=r"truth\.json: .* name it \.jsonl or \.jsonl\.gz"):
        prepare_truth([tmp_path / "instances.json"], [], tmp_path / "truth.json")
    assert not out.exists()
    assert not (tmp_path / "truth.json").exists()


def test_answers_that_are_all_yes_or_no_are_no_captions():
    truth = {str(number): frozenset({"dog"}) for number in range(4)}
    said = ["Yes", "no.", "Yes, there is a dog.", ""]
    with pytest.raises(MfpoError, match="all 3 answers begin with yes or no"):
        chair([caption(str(number), text) for number, text in enumerate(said)], truth)
    said[3] = "Nobody plays with a dog."
    assert chair([caption(str(number), text) for number, text in enumerate(said)], truth).facts["captions"] == 4
    assert chair([caption("1", ""), caption("2", "")], truth).facts["empty"] == 2


def test_json_of_the_figures_and_of_each_caption():
    written = json.loads(json.dumps(chair([caption("1", "A dog and a cat.")], {"1": frozenset({"dog"})}).json()))
    assert {name: written[name] for name in ("chair_s", "chair_i", "recall")} == {
        "chair_s": 100,
        "chair_i": 50,
        "recall": 100,
    }
    assert written["details"] == [{"image_id": "1", "objects": ["dog", "cat"], "hallucinated": ["cat"]}]


def test_captions_without_annotations_are_named():
    answers = [caption(str(number), "A dog.") for number in range(1, 7)] + [Answer("q7", None, None, "A dog.")]
    with pytest.raises(MfpoError, match=r"6 of 7 captions .*: 2, 3, 4 and 3 more"):
        chair(answers, {"1": frozenset({"dog"})})
    with pytest.raises(MfpoError, match=r"question q7 \(no image_id\)"):
        chair(answers[-1:], {"1": frozenset()})
    with pytest.raises(MfpoError, match="no caption"):
        chair([], {"1": frozenset()})


@pytest.mark.parametrize("model", REAL)
def test_real_captions_are_within_1_of_the_official_figures(reference_data, truth, model):
    result = chair(captions_of(reference_data, model), truth)
    assert result.facts["captions"] == 500
    assert (result["chair_s"], result["chair_i"], result["recall"]) == pytest.approx(REAL[model], abs=1.0)


@pytest.mark.parametrize("model", REAL)
def test_the_published_table_gives_the_official_figures(reference_data, truth, published, model):
    result = chair(captions_of(reference_data, model), truth, synonyms=published)
    assert (result["chair_s"], result["chair_i"], result["recall"]) == pytest.approx(REAL[model], abs=1e-4)
    assert result.json()["official"] is True


# What the official script finds in these, run with pattern's inflector and NLTK's tokenizer and its data.
QUIRKS = {
    "A bus, buses, minibuses and airbuses": ["bus", "bus", "airplane"],
    "ties, bow ties and a bow": ["tie", "tie"],
    "collies, doggies and a collie": ["dog"],
    "cheesecakes, cheesecake, iPhones, canoes and magpies": [],
    "motor bikes; a motor cycle": ["motorcycle"],
    "sports balls, wine glasses and a glass": ["sports ball", "wine glass"],
    "baby elephants and an adult": ["elephant", "person"],
    "the seat of the toilets": ["toilet"],
    "It's a dog.The cat naps. A bird!": ["cat", "bird"],
    "car/truck, hot-dogs and dogs' bowls": ["dog", "bowl"],
    "people, men, geese, oxen and knives": ["person", "person", "bird", "cow", "knife"],
}


@pytest.mark.parametrize("text", QUIRKS)
def test_quirks_of_the_official_script(published, text):
    assert official_classes(text, read_official_table(published)) == QUIRKS[text]


def test_the_table_as_lines_and_as_json(tmp_path, reference_data, published):
    table = json.loads(published.read_text())["synonyms"]
    lines = tmp_path / "synonyms.txt"
    lines.write_text("\n".join(", ".join(words) + " " for words in table.values()))
    assert read_official_table(lines) == read_official_table(published)
    assert read_official_table(lines).published
    refined = read_official_table(reference_data / "chair" / "synonyms_refine_object_halbench.txt")
    assert (refined.published, official_classes("Her brother at a coffee table.", refined)) == (
        False,
        ["person", "dining table"],
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("person, man\ndog, puppy", "78 classes are missing or not COCO's"),
        ('{"synonyms": {"dog": "puppy"}, "double_words": {}}', "is not a table of synonyms .*puppy"),
        ('{"person": ["man"]}', "is not a table of synonyms"),
        ("", "is empty"),
        ("<html>", "is a page of HTML"),
    ],
)
def test_tables_of_another_form(tmp_path, content, fault):
    path = tmp_path / "synonyms"
    path.write_text(content)
    with pytest.raises(MfpoError, match=fault):
        chair([caption("1", "A dog.")], {"1": frozenset()}, synonyms=path)


def test_annotations_of_the_photos(reference_data):
    truth = load_annotations(reference_data / "photos" / "instances.json")
    assert len(truth) == 16
    assert truth["20992"] == {"person", "hot dog"}


def test_annotations_as_rows_plain_and_gzipped(tmp_path):
    rows = '{"image_id": 9, "objects": ["bowl"]}\n{"image_id": "010", "objects": ["orange"]}\n'
    (tmp_path / "truth.jsonl").write_text(rows)
    (tmp_path / "truth.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    expected = {"9": frozenset({"bowl"}), "10": frozenset({"orange"})}
    assert load_annotations(tmp_path / "truth.jsonl") == load_annotations(tmp_path / "truth.jsonl.gz") == expected


def test_an_image_twice_with_equal_objects_and_two_images_of_one_id(tmp_path):
    rows = [
        {"image_id": 1, "objects": ["dog", "cat"]},
        {"image_id": "1", "objects": ["cat", "dog", "dog"]},
        {"image_id": 2, "file_name": "a.jpg", "objects": ["dog"]},
        {"image_id": 2, "file_name": "b.jpg", "objects": ["cat"]},
    ]
    path = tmp_path / "truth.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert load_annotations(path) == {"1": {"dog", "cat"}, "a.jpg": {"dog"}, "b.jpg": {"cat"}}


def test_an_image_without_annotations_holds_nothing(tmp_path):
    (tmp_path / "instances.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1}, {"id": 2}],
                "categories": [{"id": 18, "name": "dog"}],
                "annotations": [{"image_id": 1, "category_id": 18}, {"image_id": 1, "category_id": 18}],
            }
        )
    )
    assert load_annotations(tmp_path / "instances.json") == {"1": frozenset({"dog"}), "2": frozenset()}


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", '{"image_id": 1, "objects": ["dog", "unicorn"]}', "unicorn not among COCO's 80 classes"),
        ("a.jsonl", '{"image_id": 1}', "line 1: must be"),
        ("a.jsonl", '{"image_id": 1, "objects": "dog"}', "line 1: must be"),
        ("a.jsonl", '{"objects": ["dog"]}', "line 1: must be"),
        ("a.json", "{}", "is not a COCO instances file"),
        ("a.json", "[]", "is not a COCO instances file"),
        ("a.json", '{"image_id": 1, "objects": []}\n{"image_id": 2, "objects": []}', "line 2: not valid JSON"),
        ("a.json", "", "a.json: is empty"),
        ("a.json", " \n<!DOCTYPE html>\n<html>", "a.json: is a page of HTML"),
        ("a.jsonl", "<html>", "a.jsonl: is a page of HTML"),
        (
            "a.jsonl",
            '{"image_id": 1, "objects": ["dog"]}\n\n{"image_id": "1", "objects": ["cat"]}',
            "line 3: image 1 appears a second time, with other objects than in line 1; give each image once",
        ),
        (
            "a.jsonl",
            '{"image_id": "000000000001.jpg", "objects": ["dog"]}\n{"image_id": 1, "objects": []}',
            "line 2: image 1 appears a second time",
        ),
    ],
)
def test_annotations_of_another_form(tmp_path, name, content, fault):
    (tmp_path / name).write_text(content)
    with pytest.raises(MfpoError, match=fault):
        load_annotations(tmp_path / name)


def test_coco_instances_are_found_by_file_name_and_by_id(tmp_path):
    images = [{"id": 1, "file_name": "7.jpg"}, {"id": 7, "file_name": "park/a.jpg"}, {"id": 9}]
    annotations = [{"image_id": 1, "category_id": 1}, {"image_id": 7, "category_id": 2}]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    truth = load_annotations(path)
    assert truth == {"7.jpg": {"dog"}, "park/a.jpg": {"cat"}, "9": set()}
    said = [caption(image, "A dog.") for image in ("7.jpg", "park/a.jpg", "000000000009.jpg")]
    assert [score.truth for score in chair(said, truth).captions] == [{"dog"}, {"cat"}, set()]
    assert chair([caption("1", "A dog.")], truth)["chair_s"] == 0
    # The first image's file is called 7, and 7 is the second image's id.
    with pytest.raises(
        MfpoError, match=r"image '7' may be any of 2 images of .*instances\.json \('7\.jpg', 'park/a\.jpg'\)"
    ):
        chair([caption("7", "A dog.")], truth)


def shifted(tmp_path):
    """Instances in which the number in an image's file name is the id of the image before."""
    images = [{"id": number, "file_name": f"{number + 1:04}.jpg"} for number in (1, 2)]
    annotations = [{"image_id": 1, "category_id": 1}, {"image_id": 2, "category_id": 2}]
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


@pytest.mark.parametrize("is_prepared", [False, True])
@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("0002.jpg", {"dog"}),
        ("0003.jpg", {"cat"}),
        ("0002.png", {"dog"}),
        ("1", {"dog"}),
        ("0001.jpg", None),
        ("2.jpg", None),
        ("COCO_val2014_000000000001.jpg", None),
        ("kitchen/0002.jpg", None),
        ("3", None),  # a number in a name, but no id
    ],
)
def test_a_number_in_a_file_name_is_not_taken_for_an_id(tmp_path, image, expected, is_prepared):
    path = shifted(tmp_path)
    if is_prepared:
        prepare_truth([path], [], path := tmp_path / "truth.jsonl")
    truth = load_annotations(path)
    if expected is None:
        with pytest.raises(MfpoError, match=f"1 of 1 captions have images without annotations: {image};"):
            chair([caption(image, "A dog.")], truth)
    else:
        assert chair([caption(image, "A dog.")], truth).captions[0].truth == expected


def test_an_image_without_truth_does_not_get_that_of_an_id_in_another_row(tmp_path):
    answers = [Answer("q1", "0001.jpg", None, "A dog."), Answer("q2", "1", None, "A dog.")]
    for given in (answers, answers[::-1]):
        result = chair(given, load_annotations(shifted(tmp_path)), allow_missing=True)
        assert [score.answer.image_id for score in result.captions] == ["1"]
        assert result.facts["missing"] == 1


@pytest.mark.parametrize("is_prepared", [False, True])
def test_an_id_that_is_the_number_of_another_file_is_refused(tmp_path, is_prepared):
    path = shifted(tmp_path)
    if is_prepared:
        prepare_truth([path], [], path := tmp_path / "truth.jsonl")
    with pytest.raises(MfpoError, match=rf"image '2' may be any of 2 images of .*{path.name}") as caught:
        chair([caption("2", "A dog.")], load_annotations(path), allow_missing=True)
    assert "\n" not in str(caught.value)


def test_truth_of_two_spellings_of_one_number_is_refused(tmp_path):
    path = tmp_path / "truth.jsonl"
    path.write_text('{"image_id": "1.jpg", "objects": []}\n{"image_id": "001.jpg", "objects": ["dog"]}\n')
    with pytest.raises(MfpoError, match=r"truth\.jsonl: 1 and 001 may be one image or two"):
        load_annotations(path)


def test_classes_of_instances_however_they_are_written(tmp_path):
    names = ["hot_dog", "Dining table", "diningtable", "pottedplant", "tvmonitor", "aeroplane", "motorbike", "sofa"]
    data = {
        "images": [{"id": number} for number in range(len(names))],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
        "annotations": [{"image_id": number, "category_id": number} for number in range(len(names))],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(data))
    expected = ["hot dog", "dining table", "dining table", "potted plant", "tv", "airplane", "motorcycle", "couch"]
    assert list(load_annotations(path).values()) == [{name} for name in expected]
    path.write_text(json.dumps(data).replace("sofa", "street_sign"))
    with pytest.raises(MfpoError, match="street_sign not among COCO's 80 classes"):
        load_annotations(path)
