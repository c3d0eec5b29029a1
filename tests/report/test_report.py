"""Written reports: content, escaping, size; a failure leaves the old report."""

import json
import re
from html.parser import HTMLParser

import pytest

from pipelines.errors import MachineError
from pipelines.report import html, write_report
from tests.report.run_folder import REPORT_FILES, demo_run, line, make_run, write_lines, write_old_report


def test_the_json_has_results_and_examples(tmp_path):
    run = make_run(tmp_path / "r")
    write_report(run)
    report = json.loads((run / "report.json").read_text())
    assert report["format_version"] == 8 and report["run"] == "r" and report["base_model"] == "smollm2-135m-instruct"
    task = report["tasks"]["mood"]
    assert (task["metric"], task["n"], task["base"], task["tuned"], task["delta"]) == ("exact_match", 40, 0, 100, 100)
    assert task["ci95"][0] > 80 and task["label_anywhere_accuracy"]["base"] == 100
    assert {"task", "prompt", "reference", "base", "tuned", "base_score", "tuned_score"} <= set(report["examples"][0])
    assert {"steps", "rows", "supervised_tokens", "seconds", "train_loss", "validation_loss"} <= set(report["training"])
    assert report["sample_prompts"][0]["tuned"] == "tuned"


def test_nonfinite_columns_are_accepted_and_the_json_is_strict(tmp_path):
    run = make_run(tmp_path / "r")
    write_report(run)
    tasks = json.loads((run / "report.json").read_text())["tasks"]
    for side in ("base", "tuned"):
        lines = [json.loads(text) for text in (run / side / "completions.jsonl").read_text().splitlines()]
        odd = {"a": float("nan"), "b": float("inf"), "c": [float("nan")], "d": None}
        (run / side / "completions.jsonl").write_text(
            "".join(json.dumps({**record, "fields": odd}) + "\n" for record in lines)
        )
    for name, entry in (("config.yaml", "trainer: {learning_rate: .nan, other: [-.inf]}\n"),):
        (run / name).write_text((run / name).read_text() + entry)
    write_report(run)
    report = json.loads((run / "report.json").read_text(), parse_constant=pytest.fail)
    assert report["tasks"] == tasks and report["config"]["trainer"]["learning_rate"] is None


def test_the_page_names_the_gpu_and_how_it_was_used(tmp_path):
    run = make_run(tmp_path / "r")
    gpu = {"gpu": "Tesla T4", "gpu_count": 2, "gpu_memory_gb": 14.6, "compute_capability": "7.5", "driver": "580.65"}
    for file, key, values in (
        ("manifest.json", "hardware", {**gpu, "device": "cuda", "dtype": "fp16"}),
        ("manifest.json", "engines", {"base": "vLLM 0.26.0", "tuned": "vLLM 0.26.0"}),
        ("model/training.json", None, {"attention": "dense"}),
    ):
        record = json.loads((run / file).read_text())
        (record.setdefault(key, {}) if key else record).update(values)
        (run / file).write_text(json.dumps(record))
    write_report(run)
    page = " ".join((run / "report.html").read_text().split())
    assert "2 × Tesla T4 with 14.6 GB, compute capability 7.5, driver 580.65; cuda, fp16, attention dense</dd>" in page
    assert "; base by vLLM 0.26.0, tuned by vLLM 0.26.0</dd>" in page
    report = json.loads((run / "report.json").read_text())
    assert report["hardware"].items() >= gpu.items() and report["training"]["attention"] == "dense"
    assert report["engines"]["base"] == "vLLM 0.26.0"


def test_learning_the_format_is_a_caveat(tmp_path):
    run = make_run(tmp_path / "r")
    write_report(run)
    caveats = json.loads((run / "report.json").read_text())["tasks"]["mood"]["caveats"]
    assert any(
        "Base gives the right label and no other in 100.0 % of its completions, in the exact format in 0.0 %" in caveat
        for caveat in caveats
    )
    assert "learning the format" in (run / "report.html").read_text()
    assert "better on mood" in (run / "report.md").read_text().lower()


def test_the_same_files_give_the_same_bytes(tmp_path):
    run = make_run(tmp_path / "r")
    write_report(run)
    first = [(run / name).read_bytes() for name in REPORT_FILES]
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["stages"]["report"] = {"seconds": 99.0, "finished": "2027-01-01T00:00:00Z", "inputs": "b"}
    (run / "manifest.json").write_text(json.dumps(manifest))
    write_report(run)
    assert [(run / name).read_bytes() for name in REPORT_FILES] == first


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
    run = demo_run(tmp_path / "r", rows=1000, code=0.02)
    assert len(write_report(run).examples) == 1000
    assert (run / "report.html").stat().st_size < 2e6
    assert len((run / "report.md").read_text()) < 20_000


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    run = make_run(tmp_path / "r")
    before = write_old_report(run)

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(MachineError, match="No space left on device"):
        write_report(run)
    assert [(run / name).read_bytes() for name in REPORT_FILES] == before


def test_a_run_without_sample_prompts_and_validation(tmp_path):
    run = make_run(tmp_path / "r")
    (run / "base/sample_prompts.jsonl").unlink()
    (run / "tuned/sample_prompts.jsonl").unlink()
    training = json.loads((run / "model/training.json").read_text())
    (run / "model/training.json").write_text(
        json.dumps({**training, "train_loss": [], "validation_loss": [], "best_step": None})
    )
    write_report(run)
    page = (run / "report.html").read_text()
    assert "Sample prompts" not in page and page.count("<svg") == 1


def test_headings_are_in_order_and_ids_unique(tmp_path):
    page = written(demo_run(tmp_path / "r", rows=60))
    levels = [int(level) for level in re.findall(r"<h([1-6])", page)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= set(ids)


def test_every_color_that_is_used_is_defined(tmp_path):
    page = written(make_run(tmp_path / "r", rows=2))
    assert set(re.findall(r"var\((--\w+)\)", page)) <= set(re.findall(r"(--\w+):", page))


@pytest.mark.parametrize("name", html.SCRIPTS)
def test_the_scripts_write_no_markup(name):
    assert not re.search("innerHTML|outerHTML|insertAdjacent|document.write|eval", (html.HERE / name).read_text())


def test_more_examples_than_the_page_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(html, "MAX_EXAMPLES", 5)
    page = written(make_run(tmp_path / "r"))
    assert page.count('<article class="pair"') == 5 + 1 and "This page shows 5 of 40" in page
    assert "shows the 5 rows with the worst changes of 40" in " ".join(page.split())


def written(run):
    write_report(run)
    return (run / "report.html").read_text()


def test_long_completions_are_folded(tmp_path):
    run = make_run(tmp_path / "r", rows=2)
    write_lines(
        run / "tuned" / "completions.jsonl",
        [line("mood", n, f"review {n}", ["positive", "negative"][n], "x" * 10**6) for n in range(2)],
    )
    write_report(run)
    page = (run / "report.html").read_text()
    assert "1,000,000 characters" in page and "the full text is in report.json" in page
    assert len(page) < 400_000


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"stopped_early": True}, "because the validation loss no longer decreased"),
        ({"stopped_by_retention": {"evals": ["text"], "step": 94}}, "because of a regression on text"),
    ],
)
def test_the_page_names_the_reason_of_an_early_stop(tmp_path, values, reason):
    run = make_run(tmp_path / "r", rows=2)
    training = json.loads((run / "model/training.json").read_text())
    assert "stopped early" not in written(run)
    (run / "model/training.json").write_text(json.dumps({**training, **values}))
    assert f"Training stopped early {reason}." in written(run)
