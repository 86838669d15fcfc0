"""Plots are SVG that shares a page with others."""

import math
import re
from xml.etree import ElementTree

from mfpo.report import plots

ROWS = [
    {"stage": stage, "step": step, "rewards/chosen": 0.1 * step, "rewards/rejected": -0.2 * step}
    for step, stage in enumerate(["easy"] * 4 + ["medium"] * 4 + ["hard"] * 4, start=1)
]


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_same_numbers_give_the_same_bytes_without_date_or_style_sheet():
    first, second = (plots.curves(ROWS, plots.REWARDS, (-3, 2), "rewards") for _ in range(2))
    assert first == second
    assert not re.search(r"<metadata|<style|<\?xml|<!DOCTYPE", first)


def test_two_plots_of_a_page_share_no_id_but_that_of_equal_shapes():
    first = plots.curves(ROWS, plots.REWARDS, (-3, 2), "rewards")
    second = plots.bars({"Cover": {"base": 90.0, "mfpo": 91.0}}, "cover")
    shapes = [dict(re.findall(r'id="([^"]+)"[^>]*d="([^"]*)"', svg)) for svg in (first, second)]
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0]
    assert all(shapes[0][name] == shapes[1][name] for name in ids[0] & ids[1])


def test_a_key_that_no_row_has_gets_no_line():
    svg = plots.curves(ROWS, plots.REWARDS, (-3, 2), "rewards")
    assert "chosen" in texts(svg)
    assert "rejected" in texts(svg)
    assert "chosen, rejected image" not in texts(svg)


def test_stages_are_named_and_parted():
    svg = plots.curves(ROWS, plots.REWARDS, (-3, 2), "rewards")
    assert [text for text in texts(svg) if text in ("easy", "medium", "hard")] == ["easy", "medium", "hard"]
    one = plots.curves(ROWS[:4], plots.REWARDS, (-3, 2), "rewards")
    assert [drawn.count("stroke-dasharray: 1.4,2.1") for drawn in (svg, one)] == [2, 0]


def test_limits_hold_all_runs_and_zero_but_what_is_not_finite():
    runs = [
        [{"step": 1, "loss/text": 0.5}],
        [{"step": 1, "loss/image": 2.0, "loss/text": math.inf}],
        [{"step": 1, "loss/text": math.nan}],
    ]
    low, high = plots.shared_limits(runs, plots.LOSSES)
    assert low == 0
    assert 2.0 < high < 2.2


def test_bars_write_every_figure():
    svg = plots.bars({"Cover": {"base": 92.9, "mfpo": 90.5}, "CHAIR_s": {"mfpo": 4.7}}, "figures")
    assert {"92.9", "90.5", "4.7", "Cover", "CHAIR_s", "base", "mfpo"} <= set(texts(svg))


def test_names_are_neither_markup_nor_mathematics():
    hostile = "<script>alert(1)</script>$\\frac$"
    svg = plots.bars({hostile: {hostile: 1.0}}, hostile)
    root = ElementTree.fromstring(svg)
    assert not [element for element in root.iter() if element.tag.endswith("script")]
    assert texts(svg).count(hostile) == 2
    assert root.get("aria-label") == hostile


def test_histogram_shows_the_levels_that_there_are():
    svg = plots.histogram([1.0, 2.0, 3.0, 4.0], ["easy", "easy", "hard", "hard"], "entropy")
    assert {"easy", "hard"} <= set(texts(svg))
    assert "medium" not in texts(svg)


def test_histogram_takes_any_number_of_levels_the_easiest_first():
    levels = [f"level-{number + 1}" for number in range(11)]
    svg = plots.histogram([float(number) for number in range(11)], levels, "entropy")
    places = [svg.index(f">{level}<") for level in levels]
    assert places == sorted(places)
