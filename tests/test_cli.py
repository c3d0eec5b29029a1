"""The command line: help for everything, one line for every mistake, quick to start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import main

ROOT = Path(__file__).parent.parent


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
    task = {"data": str(folder / "rows.jsonl"), "prompt": "{q}", "completion": "{l}", "metric": "label", **task}
    path = folder / "job.yaml"
    path.write_text(json.dumps({"pipeline": {"tasks": {"t": task}}, "base_model": "smollm2-135m-instruct"}))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "{nothing}"}, "the template names the column {nothing}, the row has: q, l"),
        ({"data": "nowhere.jsonl"}, "there is no file 'nowhere.jsonl'"),
        ({"metric": "rogue"}, "did you mean rouge"),
        ({"rows": '{"q": 1\n'}, "rows.jsonl:1: is not JSON"),
        ({"rows": ""}, "has no rows"),
        ({"rows": '{"q": "a", "l": "x"}\n'}, "no row is left for the train split"),
    ],
)
def test_check_says_one_line_and_ends_with_2(tmp_path, change, message):
    result = call("check", write_job(tmp_path, **change))
    assert result.exit_code == 2
    assert message in result.output
    assert all(line.startswith("error: ") for line in result.output.splitlines())


@pytest.mark.parametrize(
    ("name", "message"),
    [("a/b", "no slash"), ("a b", "no slash"), ("", "--name is empty"), ("../x", "does not begin with a dot"), (".hidden", "write --name hidden")],
)
def test_names_of_runs(tmp_path, name, message):
    result = call("run", write_job(tmp_path), "--name", name)
    assert (result.exit_code, message in result.output) == (2, True)


def test_missing_config_and_run(tmp_path):
    assert "no such file" in call("check", tmp_path / "none.yaml").output
    result = call("report", tmp_path)
    assert (result.exit_code, "is no run folder" in result.output) == (2, True)


def test_a_run_with_an_unknown_model_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call("run", write_job(tmp_path), "--name", "x", "base_model=smolm2-135m-instruct")
    assert result.exit_code == 2 and "did you mean smollm2-135m-instruct" in result.output
    assert not (tmp_path / "runs" / "x" / "manifest.json").exists()


def test_models():
    assert "smollm2-135m-instruct" in call("models").output
