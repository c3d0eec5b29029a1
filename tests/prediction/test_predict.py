"""`predict` and the rows of `compare --prompts`: templates, checks before a model is loaded, no column lost."""

import datetime
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.compare import check_scores, load_file
from pipelines.config.job import load_job
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.readers import read_rows
from pipelines.data.tokenize_rows import tokenize_examples
from pipelines.errors import AlfineError
from pipelines.prediction.outputs import convert
from pipelines.prediction.predict import COLUMNS, predict
from pipelines.prediction.rows import check_prompt_lengths, load_prompts
from pipelines.storage.files import read_jsonl
from tests.jobs import QUIET, run
from tests.tiny_tokenizers import make_tokenizer


def write(name, *rows):
    Path(name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Path(name)


def job_of(tmp_path, *names, **task):
    """A job with these tasks; `odd` asks {q}, `echo` asks {prompt}."""
    tasks = {
        "odd": {
            "data": "odd.jsonl",
            "prompt": "Is it? {q}",
            "completion": "{a}",
            "metric": "exact_match",
            "max_new_tokens": 4,
            **task,
        },
        "echo": {
            "data": "echo.jsonl",
            "prompt": "Say: {prompt}",
            "completion": "{completion}",
            "system": "Be kind.",
            "metric": "chrf",
        },
        "code": {"data": "code.jsonl", "prompt": "Write {q}", "completion": "{a}", "metric": "unit_tests"},
    }
    config = {"base_model": "x/y", "pipeline": {"system": "Be brief.", "tasks": {name: tasks[name] for name in names}}}
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    return load_job(tmp_path / "job.yaml")


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def prompts_of(job, file, task=None, raw=False):
    return [
        (one.task, one.prompt, one.system, one.max_new_tokens) for one in load_prompts(job, file, task, "runs/one", raw)
    ]


def test_the_template_applies_whatever_columns_a_row_has(tmp_path):
    row = {"prompt": "tea", "completion": "cake", "task": "fetch the tea"}
    file = write("new.jsonl", row)
    assert prompts_of(job_of(tmp_path, "echo"), file) == [("echo", "Say: tea", "Be kind.", 128)]
    assert prompts_of(job_of(tmp_path, "odd", "echo"), file, "echo") == [("echo", "Say: tea", "Be kind.", 128)]
    assert prompts_of(job_of(tmp_path, "echo"), file, raw=True) == [("", "tea", "Be brief.", 128)]


def test_row_names_its_task_if_the_run_has_several(tmp_path):
    file = write("new.jsonl", {"task": "odd", "q": "3"}, {"task": "echo", "prompt": "x"})
    assert [one[:2] for one in prompts_of(job_of(tmp_path, "odd", "echo"), file)] == [
        ("odd", "Is it? 3"),
        ("echo", "Say: x"),
    ]


def test_raw_row_may_have_its_own_token_limit(tmp_path):
    assert prompts_of(
        job_of(tmp_path, "odd"), write("new.jsonl", {"prompt": "x", "max_new_tokens": 3, "more": [1]}), raw=True
    ) == [("", "x", "Be brief.", 3)]


@pytest.mark.parametrize(
    ("names", "rows", "task", "raw", "messages"),
    [
        (
            ("odd",),
            [{"q": "3"}, {"Q": "3"}],
            None,
            False,
            ["new.jsonl:2: the template names the column {q}, but the row has: Q; did you mean {Q}?"],
        ),
        (
            ("odd",),
            [{"prompt": "3"}],
            None,
            False,
            ["the row has: prompt; --raw uses the column `prompt` without a template"],
        ),
        (
            ("odd",),
            [{"q": None}, {"q": "3"}, {"q": ["3"]}],
            None,
            False,
            ["new.jsonl:1: column q has no value", "new.jsonl:3: column q holds a list"],
        ),
        (
            ("odd", "echo"),
            [{"q": "3"}],
            None,
            False,
            ["new.jsonl:1: the task is missing: add a column `task`, or --task (odd, echo)"],
        ),
        (
            ("odd", "echo"),
            [{"prompt": "3"}],
            None,
            False,
            ["--task (odd, echo); --raw uses the column `prompt` without a template"],
        ),
        (
            ("odd", "echo"),
            [{"q": "3", "task": "oddd"}],
            None,
            False,
            ["new.jsonl:1: unknown task 'oddd'; did you mean odd?"],
        ),
        (("odd", "echo"), [{"q": "3", "task": ["odd"]}], None, False, ["unknown task ['odd']; the run has odd, echo"]),
        (("odd",), [{"q": "3"}], "oddd", False, ["runs/one has no task 'oddd'; did you mean odd?"]),
        (("odd",), [{"q": "3"}], "odd", True, ["remove --task or --raw"]),
        (("odd",), [{"q": "3"}], None, True, ["new.jsonl:1: a sample prompt needs a text in `prompt`; the row has: q"]),
        (("odd",), [{"prompt": "x", "max_new_tokens": "3"}], None, True, ["new.jsonl:1: max_new_tokens is '3'"]),
        (("odd",), ['{"q": "\\ud800"}'], None, False, ["new.jsonl:1: contains an unpaired surrogate, \\ud800"]),
    ],
)
def test_unusable_rows_are_named(tmp_path, names, rows, task, raw, messages):
    with pytest.raises(AlfineError) as found:
        load_prompts(job_of(tmp_path, *names), write("new.jsonl", *rows), task, "runs/one", raw)
    assert len(found.value.problems) == len(messages)
    for problem, message in zip(found.value.problems, messages, strict=True):
        assert message in str(problem)


def test_prompts_that_fill_the_context_are_named_without_a_model(tmp_path):
    prompt_format = PromptFormat(make_tokenizer("pad_is_eos"))
    found = load_prompts(
        job_of(tmp_path, "odd"), write("new.jsonl", {"q": "x"}, {"q": "y" * 300}, {"q": "z" * 300}), None, "runs/one"
    )
    rows = list(tokenize_examples(found, prompt_format))
    length = len(rows[1].prompt_ids)
    check_prompt_lengths(rows, length + 1)  # a run completes such a row too, up to the end of the context
    with pytest.raises(
        AlfineError,
        match=f"new.jsonl:2: the prompt leaves no room for a completion in the model's context of {length} tokens",
    ):
        check_prompt_lengths(rows, length)


def test_compare_takes_the_reference_from_the_template(tmp_path):
    job = job_of(tmp_path, "odd", "echo")
    file = write(
        "new.jsonl",
        {"task": "odd", "q": "3", "a": "yes", "reference": 4711, "title": 7},
        {"task": "odd", "q": "5"},
        {"task": "odd", "q": "5", "a": None},
    )
    rows = load_file(job, file, None, False, "runs/one")
    assert [(row.prompt, row.completion, row.title) for row in rows] == [
        ("Is it? 3", "yes", None),
        ("Is it? 5", None, None),
        ("Is it? 5", None, None),
    ]


def test_compare_of_raw_prompts(tmp_path):
    file = write(
        "new.jsonl", {"prompt": "x", "reference": 4, "title": "t"}, {"prompt": "y", "reference": None}, {"prompt": "z"}
    )
    for job in (None, job_of(tmp_path, "odd")):
        rows = load_file(job, file, None, True, "runs/one")
        assert [(row.task, row.prompt, row.completion, row.title) for row in rows] == [
            ("", "x", "4", "t"),
            ("", "y", None, None),
            ("", "z", None, None),
        ]


@pytest.mark.parametrize(
    ("rows", "task", "raw", "message"),
    [
        ([{"q": "3", "a": ["yes"]}], "odd", False, "new.jsonl:1: column a holds a list"),
        ([{"prompt": "3", "reference": {"a": 1}}], None, True, "new.jsonl:1: column reference holds an object"),
        ([{"prompt": "3", "title": 3}], None, True, "new.jsonl:1: title is 3"),
        ([{"prompt": "3"}], "odd", False, "--raw uses the column"),
    ],
)
def test_references_that_cannot_be_compared_are_named(tmp_path, rows, task, raw, message):
    with pytest.raises(AlfineError, match=message):
        load_file(job_of(tmp_path, "odd", "echo"), write("new.jsonl", *rows), task, raw, "runs/one")


def test_rows_that_a_metric_cannot_score_are_found_before_generation(tmp_path):
    job = job_of(tmp_path, "code")
    rows = load_file(job, write("new.jsonl", {"q": "f", "a": "def f(): return 1"}), "code", False, "runs/one")
    with pytest.raises(AlfineError, match="new.jsonl:1: .*unit_tests needs a column `tests`"):
        check_scores(rows, {"code": {"metric": "unit_tests", "normalize": None, "cluster_by": None}})


# --- with a tiny model ---------------------------------------------------------------------------------


def command(*words):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.mark.ludwig
def test_no_column_is_lost(project):
    done = run()
    rows = {
        "q": ["is 1 odd", "is 2 odd"],
        "task": ["odd", "odd"],
        "completion": ["mine", "too"],
        "finished": [1, 2],
        "none": pa.nulls(2),
        "when": pa.array([datetime.datetime(2024, 5, 1)] * 2),
        "bytes": [b"\xff", b""],
        "nan": [float("nan"), float("inf")],
        "prompt": ["other", "other"],
        "deep": [{"day": datetime.date(2024, 5, 1)}] * 2,
    }
    pq.write_table(pa.table(rows), "new.parquet")
    result = command("predict", "runs/one", "new.parquet", "--output", "out.jsonl")
    assert result.exit_code == 0, result.output
    out = [json.loads(line, parse_constant=pytest.fail) for line in Path("out.jsonl").read_text().splitlines()]
    assert [list(row) for row in out] == [[*rows, "prediction", "prediction_finish_reason"]] * 2
    assert out[0]["completion"] == "mine" and out[0]["when"] == "2024-05-01T00:00:00" and out[0]["nan"] is None
    assert (out[1]["nan"], out[0]["bytes"], out[0]["deep"]) == ("Infinity", "/w==", {"day": "2024-05-01"})
    # The answer is that of the task's template, as the run itself gives it.
    same = write("same.jsonl", {"q": "is 3 odd", "prompt": "other", "task": "odd"})
    line = json.loads(command("predict", "runs/one", same).stdout)
    mine = [json.loads(text) for text in done.path("tuned", "completions.jsonl").read_text().splitlines()]
    assert line["prediction"] == next(one["completion"] for one in mine if one["prompt"] == "is 3 odd?")


@pytest.mark.ludwig
def test_errors_are_raised_before_the_model_is_loaded(project, monkeypatch):
    run()
    monkeypatch.setattr("pipelines.prediction.completers.load_tuned", lambda *_: pytest.fail("loaded"))
    cases = {
        '{"q": "x"}\n{"q": "x", "prediction": 1}\n': "new.jsonl:2: has a column `prediction`, which predict writes",
        '{"q": "x", "prediction_finish_reason": 1}\n': "new.jsonl:1: has a column `prediction_finish_reason`",
        json.dumps({"q": "word " * 500})
        + "\n": "new.jsonl:1: the prompt leaves no room for a completion in the model's context of 512 tokens",
        '{"q": "x"}\n{"q": ""}\n{"q": 1, "q": 2}\n': "new.jsonl:3: has the key 'q' twice in one object",
    }
    for text, message in cases.items():
        Path("new.jsonl").write_text(text)
        result = command("predict", "runs/one", "new.jsonl", "--task", "odd", "--output", "out.jsonl")
        assert (result.exit_code, message in result.stderr) == (2, True), result.output
        assert not Path("out.jsonl").exists() and not Path("out.jsonl.partial").exists()


@pytest.mark.ludwig
def test_unused_columns_change_no_result(project):
    """The instance: NaN in one of them ended a finished training with 'the training diverged'."""
    run("plain")
    lines = [json.loads(line) for line in Path("odd.jsonl").read_text().splitlines()]
    odd = [float("nan"), None, float("inf"), [1, {"x": None}], "\0\u2028", 10**30, -0.0]
    write("odd.jsonl", *({**line, "other": odd[n % len(odd)]} for n, line in enumerate(lines)))
    done = run("other")
    results = [
        json.loads(Path(f"runs/{name}/report.json").read_text(), parse_constant=pytest.fail)["tasks"]
        for name in ("plain", "other")
    ]
    assert results[0] == results[1]
    for name in ("base", "tuned"):
        for line in done.path(name, "completions.jsonl").read_text().split("\n")[:-1]:
            json.loads(line, parse_constant=pytest.fail)


def start_predict(*words):
    """`alfine predict` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "predict", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored by processes in the background
    )


@pytest.mark.ludwig
@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_killed_and_run_again_gives_the_same_file(project, signal_number, code):
    run()
    write("new.jsonl", *({"q": f"is {n} odd" * (1 + n % 9)} for n in range(6 * 512)))
    words = ("runs/one", "new.jsonl", "--task", "odd", "--output")
    assert command("predict", *words, "whole.jsonl").exit_code == 0
    process = start_predict(*words, "out.jsonl")
    state = Path("out.jsonl.partial.json")
    while not (state.exists() and json.loads(state.read_text())["done"]):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal_number)
    _, log = process.communicate()
    done = json.loads(state.read_text())["done"]
    assert (process.returncode, 512 <= done < 3072) == (code, True), log
    if code == 130:
        assert f"out.jsonl.partial keeps {done:,} of 3,072 predictions as JSON Lines" in " ".join(log.split()), log
        assert log.endswith("interrupted; run the same command again to resume\n")
    result = command("predict", *words, "out.jsonl")
    assert f"out.jsonl.partial has {done:,} of 3,072 predictions; resumed there" in " ".join(result.stderr.split())
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert not list(Path().glob("out.jsonl.*"))


@pytest.mark.ludwig
def test_every_format_goes_in_and_out(project):
    run()
    rows = [{"q": f"is {n} odd", "n": "7"} for n in range(3)]
    journal = write("rows.partial", *rows)
    names = ["in.jsonl", "in.jsonl.gz", "in.json", "in.csv.zst", "in.tsv", "in.parquet"]
    for name in names:
        convert(journal, Path(name), ())
    expected = None
    for name, output in zip(names, ("o.csv", "o.tsv.gz", "o.json", "o.jsonl.xz", "o.parquet", "o.ndjson"), strict=True):
        result = command("predict", "runs/one", name, "--task", "odd", "--output", output)
        assert result.exit_code == 0, result.output
        expected = expected or read_rows(Path(output))
        assert read_rows(Path(output)) == expected and len(expected) == 3
    result = command("predict", "runs/one", "in.*.gz", "in.json", "--task", "odd")
    assert [json.loads(line) for line in result.stdout.splitlines()] == expected * 2


@pytest.mark.ludwig
def test_a_file_that_changes_while_it_is_read_is_an_error(project):
    done = run()
    write("new.jsonl", *({"q": f"is {n} odd"} for n in range(520)))
    rows = predict(done, ["new.jsonl"], "odd", QUIET)
    next(rows)
    write("new.jsonl", *({"q": f"is {n} even"} for n in range(520)))
    with pytest.raises(AlfineError, match="new.jsonl: has been changed while its rows were completed"):
        list(rows)


@pytest.mark.ludwig
def test_rows_with_too_many_columns_are_found_before_they_are_completed(project):
    run()
    write("new.jsonl", *({"q": "x", **{f"c{n}-{m}": 1 for m in range(600)}} for n in range(20)))
    result = command("predict", "runs/one", "new.jsonl", "--task", "odd", "--output", "out.csv")
    message = "new.jsonl:17: the rows have more than 10,000 different columns by now; write them as .jsonl"
    assert (result.exit_code, result.stderr.splitlines()) == (2, [f"error: {message}"])
    assert command("predict", "runs/one", "new.jsonl", "--task", "odd", "--output", "out.jsonl").exit_code == 0


@pytest.mark.ludwig
def test_options_that_mean_nothing_together(project):
    run()
    write("new.jsonl", {"q": "x"})
    for words, message in {
        ("--workers", "2"): "--workers applies to --ray",
        ("--restart",): "--restart applies to an interrupted --output",
        ("--output", "new.jsonl"): "is the input file",
        ("--output", "out.text"): "its format is unknown",
    }.items():
        result = command("predict", "runs/one", "new.jsonl", "--task", "odd", *words)
        assert (result.exit_code, message in result.stderr) == (2, True), result.output


@pytest.mark.ludwig
def test_the_base_model_completes_the_rows_too(project):
    done = run()
    write("new.jsonl", *({"q": f"is {n} odd", "base_prediction": "mine"} for n in range(30)))
    words = ("predict", "runs/one", "new.jsonl", "--task", "odd")
    tuned = [json.loads(line) for line in command(*words).stdout.splitlines()]
    result = command(*words, "--base")
    assert (result.exit_code, "has a column `base_prediction`, which predict writes" in result.stderr) == (2, True)
    write("new.jsonl", *({"q": f"is {n} odd"} for n in range(43)))
    both = [json.loads(line) for line in command(*words, "--base").stdout.splitlines()]
    assert [row["prediction"] for row in both[:30]] == [row["prediction"] for row in tuned]
    stored = read_jsonl(done.path("base", "completions.jsonl"))
    expected = {one["prompt"]: one["completion"] for one in stored if one["task"] == "odd"}
    found = {f"{row['q']}?": row["base_prediction"] for row in both}
    assert [found[prompt] for prompt in expected if prompt in found] == [expected[p] for p in expected if p in found]
    assert list(both[0]) == ["q", *COLUMNS[:2], *COLUMNS[3:5]]
    result = command(*words, "--base", "--ray")
    assert (result.exit_code, "--base does not work with --ray" in result.stderr) == (2, True)
