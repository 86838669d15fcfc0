"""The table marks what is better and what is worse, and the headline says it as it is."""

from mfpo.report.scores import changes, headline, rows

MODELS = {
    "base": {"chair_s": 40.0, "cover": 92.0, "length": 38.0, "image_dependence": 4.0},
    "dpo": {"chair_s": 44.0, "cover": 80.0, "length": 30.0, "image_dependence": 4.002},
    "mfpo": {"chair_s": 10.0, "cover": 91.0, "length": 36.0, "image_dependence": 9.5},
}


def column(models, number):
    """The cells of a column: the text, whether it is the best, whether it is worse than base."""
    cells = [row[number + 1] for row in rows(models)]
    return [(cell.text, cell.mark == "best", cell.mark == "worse") for cell in cells]


def test_lower_chair_is_better():
    assert column(MODELS, 0) == [("40.0", False, False), ("44.0", False, True), ("10.0", True, False)]


def test_higher_cover_is_better_and_base_may_be_best():
    assert column(MODELS, 1) == [("92.0", True, False), ("80.0", False, True), ("91.0", False, True)]


def test_a_shorter_caption_is_neither_better_nor_worse():
    assert column(MODELS, 2) == [("38.0", False, False), ("30.0", False, False), ("36.0", False, False)]


def test_what_prints_alike_is_equal():
    assert column(MODELS, 3) == [("4.00", False, False), ("4.00", False, False), ("9.50", True, False)]
    assert not any(cell.mark for _, cell in rows({"a": {"cover": 1.0}, "b": {"cover": 1.04}}))


def test_a_missing_figure_is_a_dash():
    models = {"base": {"cover": 90.0, "chair_s": 9.0}, "mfpo": {"chair_s": 8.0}}
    assert [cell.text for cell in rows(models)[1][1:]] == ["8.0", "–"]


def test_headline_says_that_chair_rose():
    assert headline(MODELS, "dpo") == "dpo: CHAIR_s rose by 10 %"
    assert headline(MODELS, "mfpo") == "mfpo: CHAIR_s fell by 75 %"


def test_headline_without_base_names_the_model_only():
    assert headline({"mfpo": {"chair_s": 3.0}}, "mfpo") == "mfpo"
    assert headline({"base": {"chair_s": 0.0}, "mfpo": {"chair_s": 3.0}}, "mfpo") == "mfpo"


def test_changes_tell_losses_too_and_no_length():
    assert changes(MODELS, "dpo") == [
        "CHAIR_s rose from 40.0 to 44.0 %",
        "Cover fell from 92.0 to 80.0 %",
        "Image dependence (noise) stayed at 4.00 nats",
    ]


def test_a_small_change_is_not_a_change_by_nothing():
    assert headline({"base": {"chair_s": 40.0}, "a": {"chair_s": 39.9}}, "a") == "a: CHAIR_s fell by less than 1 %"
