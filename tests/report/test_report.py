"""One analysis, three forms; model text is data; a failure leaves the old report."""

import json
import re
from html.parser import HTMLParser

import pytest

from pipelines.errors import RunError
from pipelines.report import write_report
from tests.report.run_folder import line, make_run, write_lines

NAMES = ("report.html", "report.md", "report.json")


def test_json_has_what_is_promised(tmp_path):
    run = make_run(tmp_path / "r")
    write_report(run)
    report = json.loads((run / "report.json").read_text())
    assert report["format_version"] == 1 and report["run"] == "r" and report["base_model"] == "some-model"
    task = report["tasks"]["mood"]
    assert (task["metric"], task["n"], task["base"], task["tuned"], task["delta"]) == ("label", 40, 0, 100, 100)
    assert task["ci95"][0] > 80 and task["loose"]["base"] == 100
    assert {"task", "prompt", "reference", "base", "tuned", "base_score", "tuned_score"} <= set(report["examples"][0])
    assert {"steps", "rows", "supervised_tokens", "seconds", "train_loss", "validation_loss"} <= set(report["training"])
    assert report["probes"][0]["tuned"] == "tuned"


def test_learning_the_form_is_not_sold_as_learning_the_task(tmp_path):
    run = make_run(tmp_path / "r")
    write_report(run)
    page = (run / "report.html").read_text()
    assert "Base names the right label in 100.0 % of its answers" in page
    assert "better on mood" in (run / "report.md").read_text().lower()


def test_the_same_files_give_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "r")
    write_report(run)
    first = [(run / name).read_bytes() for name in NAMES]
    write_report(run)
    assert [(run / name).read_bytes() for name in NAMES] == first


def test_model_text_is_escaped(tmp_path):
    run = make_run(tmp_path / "r", rows=2)
    hostile = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>\u202e{{ 7*7 }}"
    for side in ("base", "tuned"):
        write_lines(run / side / "completions.jsonl", [line("mood", n, hostile, "positive", hostile) for n in range(2)])
    write_report(run)
    page = (run / "report.html").read_text()
    scripts = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag, attributes):
            if tag in ("script", "img", "link", "iframe"):
                scripts.append(tag)
            assert not [name for name, _ in attributes if name.startswith("on")]

    Tags().feed(page)
    assert scripts == ["script"]
    assert "{{ 7*7 }}" in page and "\u202e" not in page
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'", page)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_a_thousand_examples_stay_under_two_megabytes(tmp_path):
    run = make_run(tmp_path / "r", rows=1000)
    write_report(run)
    assert (run / "report.html").stat().st_size < 2e6
    assert len((run / "report.md").read_text()) < 20_000


def break_manifest(run):
    (run / "manifest.json").write_text("{")


def break_version(run):
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "format_version": 9}))


def halve(run):
    path = run / "tuned" / "completions.jsonl"
    path.write_text(path.read_text()[: path.stat().st_size // 2])


def swap(run):
    lines = (run / "tuned" / "completions.jsonl").read_text().splitlines(keepends=True)
    (run / "tuned" / "completions.jsonl").write_text("".join(lines[::-1]))


def not_a_number(run):
    path = run / "base" / "completions.jsonl"
    path.write_text(path.read_text().replace('"reference_loss": 1.5', '"reference_loss": NaN', 1))


def no_completions(run):
    (run / "tuned" / "completions.jsonl").unlink()


def no_training(run):
    (run / "model" / "training.json").unlink()


def empty_answers(run):
    for side in ("base", "tuned"):
        write_lines(run / side / "completions.jsonl", [line("mood", n, "p", "positive", "") for n in range(40)])


@pytest.mark.parametrize(
    "damage", [break_manifest, break_version, halve, swap, not_a_number, no_completions, no_training, empty_answers]
)
def test_damage_is_one_line_and_the_old_report_stays(tmp_path, damage):
    run = make_run(tmp_path / "r")
    write_report(run)
    before = [(run / name).read_bytes() for name in NAMES]
    damage(run)
    with pytest.raises(RunError) as caught:
        write_report(run)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert [(run / name).read_bytes() for name in NAMES] == before
    assert not list(run.glob(".*part"))


def test_long_answers_fold(tmp_path):
    run = make_run(tmp_path / "r", rows=2)
    write_lines(run / "tuned" / "completions.jsonl", [line("mood", n, f"review {n}", ["positive", "negative"][n], "x" * 10**6) for n in range(2)])
    write_report(run)
    page = (run / "report.html").read_text()
    assert "1,000,000 characters" in page and "the rest stands in report.json" in page
    assert len(page) < 400_000
