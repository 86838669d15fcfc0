"""Plots and tables of the probes' pages."""

from xml.etree import ElementTree

from mfpo.probe.page import Line, limits_of, plot, table
from mfpo.report.plots import MODEL_COLOURS


def test_two_plots_with_intervals_share_no_id_but_that_of_equal_shapes():
    lines = [{"a": Line(x=[0, 1], y=[y, 2], low=[y - 1, 1], high=[y + 1, 3])} for y in (1.0, 5.0)]
    plots = [plot(line, x_label="x", y_label="y", label="a plot", limits=(0, 6)) for line in lines]
    shapes = []
    for svg in plots:
        named = [element for element in ElementTree.fromstring(svg).iter() if "id" in element.attrib]
        assert len({element.attrib["id"] for element in named}) == len(named) > 0
        shapes.append({element.attrib["id"]: ElementTree.tostring(element).strip() for element in named})
    shared = shapes[0].keys() & shapes[1].keys()
    assert all(shapes[0][id] == shapes[1][id] for id in shared), shared


def test_limits_hold_all_intervals_and_what_they_must():
    low, high = limits_of([Line(x=[0], y=[2.0], low=[1.0], high=[4.0]), Line(x=[0], y=[-1.0])])
    assert -1.4 < low < -1
    assert 4 < high < 4.4
    assert limits_of([Line(x=[0], y=[2.0])])[0] == 0
    assert limits_of([Line(x=[0], y=[2.0], raw=[9.0])])[1] > 9


def test_a_name_has_one_look_in_all_plots():
    line = Line(x=[0, 1], y=[0, 1])
    both = plot({"a": line, "b": line}, x_label="x", y_label="y", label="both")
    alone = plot({"b": line}, x_label="x", y_label="y", label="alone", names=["a", "b"])
    other = plot({"b": line}, x_label="x", y_label="y", label="alone")
    colour = MODEL_COLOURS[1].lower().replace("#0072b2", "var(--blue)")
    assert f"stroke: {colour}" in both
    assert f"stroke: {colour}" in alone
    assert f"stroke: {colour}" not in other


def test_texts_of_a_table_are_escaped():
    made = table(("run", "<b>"), [("<i>", "1 & 2")])
    assert "<b>" not in made
    assert "<i>" not in made
    assert '<th scope="row">&lt;i&gt;</th><td>1 &amp; 2</td>' in made
