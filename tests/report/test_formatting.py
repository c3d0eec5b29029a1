"""Numbers, units and text."""

import pytest

from pipelines.report import formatting
from pipelines.scoring.metric import Unit


@pytest.mark.parametrize(
    "text, expected",
    [
        (formatting.signed(3.14), "+3.1"),
        (formatting.signed(-3.14), "−3.1"),
        (formatting.signed(-0.04), "0.0"),
        (formatting.signed(-0.0004, Unit.NATS_PER_TOKEN), "0.000"),
        (formatting.interval((-1, 2)), "−1.0 to +2.0"),
        (formatting.score(None, Unit.PERCENT, True), "not scored"),
        (formatting.score(0.0, Unit.PERCENT, True), "wrong"),
        (formatting.score(100.0, Unit.PERCENT, True), "right"),
        (formatting.score(41.666, Unit.POINTS, False), "41.7"),
        (formatting.p_value(0.0004), "< 0.001"),
        (formatting.p_value(0.05), "0.050"),
        (formatting.count(1, "row"), "1 row"),
        (formatting.count(1200, "row"), "1,200 rows"),
        (formatting.duration(0.44), "0.4 s"),
        (formatting.duration(59.6), "1 min 0 s"),
        (formatting.duration(3599.9), "1 h 0 min"),
        (formatting.joined(["a"]), "a"),
        (formatting.joined(["a", "b", "c"]), "a, b and c"),
        (formatting.one_line("a\n b\tc", 10), "a b c"),
        (formatting.one_line("abcdef", 4), "abc…"),
        (formatting.one_line("中文\n字", 6), "中文…"),
        (formatting.one_line("हिन्दी", 2), "हि…"),
        (formatting.printable("a\x00b\r\nc\td\x7f\ud800"), "a␀b\nc\td⟨U+007F⟩⟨U+D800⟩"),
    ],
)
def test_formatting(text, expected):
    assert text == expected
