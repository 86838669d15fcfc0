"""Plots are SVG that shares a page with others."""

import math
import re
from itertools import combinations
from xml.etree import ElementTree

from mfpo.report import plots
from mfpo.report.plots import Line, limits_of, looks_of, plot
from mfpo.report.tables import table

STAGES = [
    {"stage": stage, "step": step} for step, stage in enumerate(["easy"] * 4 + ["medium"] * 4 + ["hard"] * 4, start=1)
]
REWARDS = {"chosen": Line(x=range(12), y=range(12)), "rejected": Line(x=range(12), y=range(0, -12, -1))}


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_same_numbers_give_the_same_bytes_without_date_or_style_sheet():
    first, second = (plot(REWARDS, x_label="step", label="rewards", stages=STAGES) for _ in range(2))
    assert first == second
    assert not re.search(r"<metadata|<style|<\?xml|<!DOCTYPE", first)


def test_two_plots_of_a_page_share_no_id_but_that_of_equal_shapes():
    bands = Line(x=[0, 1], y=[1.0, 2], low=[0, 1], high=[2, 3]), Line(x=[0, 1], y=[5.0, 2], low=[4, 1], high=[6, 3])
    drawn = [plot({"a": band}, x_label="x", label="a plot", limits=(0, 6)) for band in bands]
    shapes = []
    for svg in (*drawn, plots.bars({"Cover": {"base": 90.0, "mfpo": 91.0}}, "cover")):
        named = [element for element in ElementTree.fromstring(svg).iter() if "id" in element.attrib]
        assert len({element.attrib["id"] for element in named}) == len(named)
        shapes.append({element.attrib["id"]: ElementTree.tostring(element).strip() for element in named})
    assert shapes[0]
    for first, second in combinations(shapes, 2):
        assert all(first[id] == second[id] for id in first.keys() & second.keys())


def test_stages_are_named_and_parted():
    svg = plot(REWARDS, x_label="step", label="rewards", stages=STAGES)
    assert [text for text in texts(svg) if text in ("easy", "medium", "hard")] == ["easy", "medium", "hard"]
    one = plot(REWARDS, x_label="step", label="rewards", stages=STAGES[:4])
    assert [drawn.count("stroke-dasharray: 1.4,2.1") for drawn in (svg, one)] == [2, 0]


def test_limits_hold_all_values_intervals_and_zero_but_what_is_not_finite():
    low, high = limits_of([Line(x=[0], y=[2.0], low=[1.0], high=[4.0]), Line(x=[0], y=[-1.0])])
    assert -1.4 < low < -1
    assert 4 < high < 4.4
    assert limits_of([Line(x=[0, 1, 2], y=[2.0, math.inf, math.nan])]) == (0, 2.12)
    assert limits_of([Line(x=[0], y=[2.0], raw=[9.0])])[1] > 9


def test_a_name_has_one_look_in_all_plots():
    line = Line(x=[0, 1], y=[0, 1])
    both = plot({"a": line, "b": line}, x_label="x", label="both")
    alone = plot({"b": line}, x_label="x", label="alone", looks=looks_of(["a", "b"]))
    other = plot({"b": line}, x_label="x", label="alone")
    colour = plots.MODEL_COLOURS[1].lower().replace("#0072b2", "var(--blue)")
    assert f"stroke: {colour}" in both
    assert f"stroke: {colour}" in alone
    assert f"stroke: {colour}" not in other


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


def test_texts_of_a_table_are_escaped():
    made = table(("run", "<b>"), [("<i>", "1 & 2")])
    assert "<b>" not in made
    assert "<i>" not in made
    assert '<th scope="row">&lt;i&gt;</th><td>1 &amp; 2</td>' in made


def test_every_name_is_in_the_legend():
    line = Line(x=[0, 1], y=[0, 1])
    for svg in (
        plot({"_run": line, "b": line}, x_label="x", label="both"),
        plots.bars({"Cover": {"_run": 90.0, "b": 91.0}}, "cover"),
    ):
        assert {"_run", "b"} <= set(texts(svg))
