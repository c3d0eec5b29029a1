"""The command line: help for everything, one line for every mistake, quick to start."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import _run_name, main
from pipelines.console import activity
from pipelines.data.examples import Example
from tests.report.run_folder import demo_run, make_run

ROOT = Path(__file__).parents[1]


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", main.commands)
def test_every_command_has_help_with_an_example_and_stands_in_the_readme(name):
    text = call(name, "--help").output
    assert f"alfine {name}" in text and len(text.splitlines()) > 6
    assert f"alfine {name}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_help_and_check_import_nothing_heavy():
    code = (
        "import sys; from click.testing import CliRunner; from pipelines.cli import main\n"
        "CliRunner().invoke(main, ['--help'])\n"
        "assert 'transformers' not in sys.modules\n"
        "result = CliRunner().invoke(main, ['check', 'ludwig_configs/quickstart.yaml'])\n"
        # transformers' renderer of chat templates comes without torch.
        "heavy = {'torch', 'ludwig', 'peft', 'pandas', 'scipy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} {result.output}' if heavy or result.exit_code else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def write_job(folder, rows='{"q": "a", "l": "x"}\n' * 12, **task):
    (folder / "rows.jsonl").write_text(rows)
    task = {"data": str(folder / "rows.jsonl"), "prompt": "{q}", "completion": "{l}", "metric": "exact_match", **task}
    path = folder / "job.yaml"
    path.write_text(json.dumps({"pipeline": {"tasks": {"t": task}}, "base_model": "smollm2-135m-instruct"}))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "{nothing}"}, "the template names the column {nothing}, but the row has: q, l"),
        ({"data": "nowhere.jsonl"}, "no such file: 'nowhere.jsonl'"),
        ({"metric": "rogue"}, "did you mean rouge"),
        ({"rows": '{"q": 1\n'}, "rows.jsonl:1: is not JSON"),
        ({"rows": ""}, "has no rows"),
        ({"rows": '{"q": "a", "l": "x"}\n'}, "the train split is empty"),
    ],
)
def test_check_says_one_line_and_ends_with_2(tmp_path, change, message):
    result = call("check", write_job(tmp_path, **change))
    assert result.exit_code == 2
    assert message in result.output
    assert all(line.startswith("error: ") for line in result.output.splitlines())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a/b", "no slash"),
        ("a b", "no slash"),
        ("", "--name is empty"),
        ("../x", "does not begin with a dot"),
        (".hidden", "write --name hidden"),
    ],
)
def test_names_of_runs(tmp_path, name, message):
    result = call("run", write_job(tmp_path), "--name", name)
    assert (result.exit_code, message in result.output) == (2, True)


@pytest.mark.parametrize("name", ["erster", "हिन्दी", "ครั้งที่1", "프로젝트-2", "a_b.c"])
def test_names_of_runs_in_every_script(name):
    assert _run_name(name) == name


def test_missing_config_and_run(tmp_path):
    assert "no such file" in call("check", tmp_path / "none.yaml").output
    result = call("report", tmp_path)
    assert (result.exit_code, "is not a run directory" in result.output) == (2, True)


def test_a_run_with_an_unknown_model_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("run", write_job(tmp_path), "--name", "x", "base_model=smolm2-135m-instruct")
    assert result.exit_code == 2 and "did you mean smollm2-135m-instruct" in result.output
    assert not (tmp_path / "runs" / "x" / "manifest.json").exists()


def test_models():
    assert "smollm2-135m-instruct" in call("models").output


HOSTILE = [
    'pipeline.tasks.t.prompt="{q}  what\'s $HOME * `id` \\"now\\"?"',
    "adapter={type: lora}",
    "pipeline.system=two  spaces;\nand a line",
]


def test_saved_commands_can_be_pasted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my jobs").mkdir()
    config = write_job(tmp_path / "my jobs").relative_to(tmp_path)
    saved = []
    monkeypatch.setattr(
        "pipelines.run.run_job", lambda job, run, command, reporter: saved.append(command) or sys.exit(0)
    )
    monkeypatch.setattr(
        "pipelines.sweep.run_job", lambda job, run, command, reporter: saved.append(command) or sys.exit(0)
    )
    monkeypatch.setattr("pipelines.compare.compare_models", lambda *given: saved.append(given[6]) or sys.exit(0))
    call("run", config, *HOSTILE, "--name", "one")
    assert shlex.split(saved[-1]) == ["alfine", "run", str(config), "--name", "one", *HOSTILE]
    call("bakeoff", config, *HOSTILE, "--strategies", "none")
    words = shlex.split(saved[-1])
    assert (
        words[:5] == ["alfine", "run", str(config), "--name", "none-learning_rate-0.0002-seed42"]
        and words[5:8] == HOSTILE
    )
    call("compare", "runs/a b", "runs/c$d", "--prompts", "new rows.jsonl", "--metric", "chrf", "--output", "out *")
    assert shlex.split(saved[-1]) == [
        "alfine",
        "compare",
        "runs/a b",
        "runs/c$d",
        "--prompts",
        "new rows.jsonl",
        "--metric",
        "chrf",
        "--output",
        "out *",
    ]
    # The shell itself agrees.
    shown = subprocess.run(
        ["sh", "-c", "printf '%s\\0' " + saved[0]], capture_output=True, text=True, check=True
    ).stdout
    assert shown.split("\0")[:-1] == ["alfine", "run", str(config), "--name", "one", *HOSTILE]


def test_advice_to_run_something_is_quoted(tmp_path):
    result = call("predict", _begun(tmp_path / "my run"), tmp_path / "x.jsonl")
    assert "finish it with: alfine run 'a b.yaml' --name 'my run'" in result.output


def _begun(folder):
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"format_version": 1, "config": "a b.yaml", "stages": {}}))
    return folder


def test_ratings_are_of_one_run(tmp_path):
    result = call("compare", "a", "b", "--ratings", tmp_path / "anna.json")
    assert (result.exit_code, "--ratings goes with a single run" in result.output) == (2, True)


def alfine(*arguments, **environment):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.usefixtures("compiled_sandbox")
@pytest.mark.parametrize("arguments", [["show"], ["compare"], ["report"]], ids=lambda one: one[0])
def test_a_reader_that_leaves_ends_it_quietly(tmp_path, arguments):
    process = alfine(*arguments, demo_run(tmp_path / "r", rows=40))
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == b"" and process.wait() in (0, 1)


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "cp1252"},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["show", "compare"])
def test_an_encoding_that_lacks_characters_is_no_traceback(tmp_path, environment, command):
    run = make_run(tmp_path / "r", rows=8, base_answer="▁tea … 中 {}")
    process = alfine(command, run, **environment)
    out, errors = process.communicate()
    assert process.returncode == 0 and b"Traceback" not in errors
    assert b"\\u4e2d" in out if command == "show" else b"mood" in out


def test_no_pager_where_only_colour_is_forced(tmp_path):
    process = alfine("show", make_run(tmp_path / "r", rows=4), FORCE_COLOR="1", PAGER="false")
    out, _ = process.communicate()
    assert process.returncode == 0 and b"mood, row" in out


def test_a_silent_command_says_that_it_lives(tmp_path, monkeypatch):
    slow = write_job(tmp_path)
    monkeypatch.setattr(activity.HEARTBEAT, "every", 0.05)

    def slow_rows(pipeline):
        for row in range(6):
            time.sleep(0.1)
            split = ["train", "test", "validation"][row // 2]
            yield Example(
                task="t", split=split, file="rows.jsonl", row=row, prompt="p", completion="yn"[row % 2], fields={}
            )

    monkeypatch.setattr("pipelines.checks.job.load_examples", slow_rows)
    result = call("check", slow)
    assert "reading the rows: 0." in result.stderr and "fine" in result.stdout
