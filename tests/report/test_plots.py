"""The figures."""

import xml.etree.ElementTree as ET

from pipelines.report import plots


def test_figures_are_svg_with_text_and_without_a_date(demo_analysis):
    for svg in (plots.dot_plot(list(demo_analysis.tasks.values())), plots.loss_curve(demo_analysis.training)):
        root = ET.fromstring(svg)
        assert root.tag.endswith("svg") and [node for node in root.iter() if node.tag.endswith("text")]
        assert "metadata" not in svg and "date" not in svg.lower() and "#01010" not in svg
    assert plots.dot_plot(list(demo_analysis.tasks.values())).count("sentiment") >= 1


def test_a_long_run_is_drawn_with_few_points():
    steps, losses = plots._downsample([(step, 2.0) for step in range(1, 5001)], max_points=120)
    assert len(steps) == len(losses) <= 120 and set(losses) == {2.0}
    assert plots._downsample([], max_points=120) == ([], [])
