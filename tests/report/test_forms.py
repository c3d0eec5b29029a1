"""Every form of the report: names of the models, gates, notes on metrics, the digest."""

import io
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from pipelines.report import analyse, html, json_report, markdown
from pipelines.report.results import GateResult
from pipelines.report.terminal import print_summary
from tests.report.run_folder import line, make_run, write_run

GATES = [GateResult("speed", True, "fast enough."), GateResult("mood", False, "mood <b>fell</b> by 3.0 points.")]


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Two runs of which one always gives the same answer, fails a gate and shows no training."""
    answers = (["yes", "no"] * 10, ["yes"] * 20)
    completions = [[line("mood", n, "p", ["yes", "no"][n % 2], side[n]) for n in range(20)] for side in answers]
    run = write_run(tmp_path_factory.mktemp("runs") / "r", {"mood": "exact_match"}, *completions)
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "models": ["lr_low", "lr_high"]}))
    return replace(analyse(run), gates=GATES)


def visible(page):
    """What a reader sees of the page, without its script, style and head."""
    body = re.sub(r"(?s)^.*<body[^>]*>|<(script|style|svg)\b.*?</\1>", "", page)
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def test_a_comparison_shows_only_the_names_of_its_models(compared):
    text = visible(html.render(compared))
    assert not re.search(r"\b(base|tuned)\b", text[: text.rindex("Reproducibility")], re.IGNORECASE)
    for text_part in (
        "lr_low and lr_high completed the same 20 test rows.",
        "lr_low is at the ceiling",
        "lr_high always answers",
    ):
        assert text_part in text


def test_a_comparison_has_no_training(compared):
    page = html.render(compared)
    assert 'id="training"' not in page and "#training" not in page and "was tuned on" not in page
    assert "supervised" not in markdown.render(compared)
    assert json.loads(json_report.render(compared))["training"] is None


def test_other_forms_have_the_names(compared):
    text = markdown.render(compared)
    assert "| lr\\_low | lr\\_high |" in text and "- lr\\_high: `yes`" in text
    out = io.StringIO()
    print_summary(compared, Console(file=out, width=140))
    assert re.search(r"Rows +lr_low +lr_high +Change", out.getvalue())
    assert json.loads(json_report.render(compared))["models"] == ["lr_low", "lr_high"]


def test_the_models_of_a_run_are_base_and_tuned(tmp_path):
    analysis = analyse(make_run(tmp_path / "r", rows=4))
    text = visible(html.render(analysis))
    assert analysis.models == ("base", "tuned") and "Base · wrong" not in text
    assert "Base wrong" in text.replace("  ", " ") and "Quality gates" not in text


def test_failed_gates_come_first_in_words(compared):
    page = html.render(compared)
    items = re.findall(r'(?s)<li class="(failed|passed)"><strong>(\w+)</strong>.*?<b>(\w+)</b>', page)
    assert items == [("failed", "Failed", "mood"), ("passed", "Passed", "speed")]
    assert page.index("</h1>") < page.index('class="gates"') < page.index('class="lede"')
    assert "mood &lt;b&gt;fell&lt;/b&gt; by 3.0 points." in page
    text = markdown.render(compared)
    assert "- **FAILED**: mood: mood \\<b\\>fell\\</b\\> by 3.0 points.\n- passed: speed" in text
    out = io.StringIO()
    print_summary(compared, Console(file=out, width=140))
    assert out.getvalue().index("FAILED mood") < out.getvalue().index("passed speed")
    assert [gate["passed"] for gate in json.loads(json_report.render(compared))["gates"]] == [False, True]


def test_the_digest_is_that_of_the_completions(tmp_path):
    first, same, other = (
        analyse(make_run(tmp_path / name, rows=4, tuned_answer=answer))
        for name, answer in (("a", "{}"), ("b", "{}"), ("c", "{}!"))
    )
    assert first.digest == same.digest != other.digest and re.fullmatch("[0-9a-f]{64}", first.digest)
    swapped = replace(
        first, examples=[replace(example, base=example.tuned, tuned=example.base) for example in first.examples]
    )
    assert swapped.digest != first.digest
    assert f'data-report="{first.digest}"' in html.render(first)
    assert json.loads(json_report.render(first))["digest"] == first.digest


def test_the_kept_step_is_named_in_the_figure(tmp_path):
    assert "step 141 kept" in html.render(analyse(make_run(tmp_path / "r", rows=4)))


def test_every_form_has_the_notes_on_metrics(demo_analysis):
    page, comment, data = (
        html.render(demo_analysis),
        markdown.render(demo_analysis),
        json.loads(json_report.render(demo_analysis)),
    )
    for name, note in (
        ("sentiment", "Case, white space, quotes around a label"),
        ("summaries", "of scripts without spaces between words"),
    ):
        assert note in data["tasks"][name]["scoring"] and note in page and note in comment
    assert data["tasks"]["code"]["scoring"] == ""
