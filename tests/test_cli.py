"""The command line: help for everything, one line for every mistake, and a fast start."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.cli import COMMAND_SYNONYMS, VERBS, main
from pipelines.commands.arguments import check_run_name
from pipelines.console import activity
from pipelines.data.examples import Example
from pipelines.storage.run_folder import FORMAT_VERSION
from tests.report.run_folder import demo_run, make_run

ROOT = Path(__file__).parents[1]


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help_with_an_example_and_is_in_the_readme(name):
    text = call(name, "--help").output
    assert f"alfine {name}" in text and len(text.splitlines()) > 6
    command = main.get_command(None, name)
    assert command.name == name and command.help.startswith(VERBS[name].removesuffix("."))
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
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr


def test_no_command_imports_torch_before_it_has_read_its_arguments():
    code = (
        "import sys; from pipelines.cli import VERBS, main\n"
        "assert all(main.get_command(None, name) for name in VERBS)\n"
        "sys.exit(str({'torch', 'ludwig', 'transformers', 'peft', 'scipy', 'matplotlib'} & set(sys.modules) or ''))"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert process.stderr.strip() == ""


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
        ({"rows": '{"q": "a", "l": "x"}\n'}, "the test split is empty"),
    ],
)
def test_check_prints_one_line_per_error_and_exits_with_2(tmp_path, change, message):
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
    assert check_run_name(name) == name


def test_missing_config_and_run(tmp_path):
    assert "no such file" in call("check", tmp_path / "none.yaml").output
    result = call("report", tmp_path)
    assert (result.exit_code, "is not a run folder" in result.output) == (2, True)


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
        "pipelines.commands.run.run_job", lambda job, run, command, reporter: saved.append(command) or sys.exit(0)
    )
    monkeypatch.setattr(
        "pipelines.sweep.run_job", lambda job, run, command, reporter: saved.append(command) or sys.exit(0)
    )
    monkeypatch.setattr(
        "pipelines.commands.compare.compare_models", lambda *given: saved.append(given[6]) or sys.exit(0)
    )
    call("run", config, *HOSTILE, "--name", "one")
    assert shlex.split(saved[-1]) == ["alfine", "run", str(config), "--name", "one", *HOSTILE]
    call("sweep", config, *HOSTILE, "--strategies", "none")
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


def test_suggested_commands_are_quoted(tmp_path):
    result = call("predict", _begun(tmp_path / "my run"), tmp_path / "x.jsonl")
    assert "finish it with: alfine run 'a b.yaml' --name 'my run'" in result.output


def _begun(folder):
    folder.mkdir()
    (folder / "manifest.json").write_text(
        json.dumps({"format_version": FORMAT_VERSION, "config": "a b.yaml", "stages": {}})
    )
    return folder


@pytest.mark.parametrize("models", [[], ["a"], ["a", "b", "c"]], ids=len)
def test_compare_takes_two_models(models):
    result = call("compare", *models)
    assert result.exit_code == 2 and f"compare takes two models, not {len(models)}" in result.output


@pytest.mark.parametrize(
    ("word", "verb"), [*COMMAND_SYNONYMS.items(), ("chekc", "check"), ("exampels", "examples"), ("rnu", "run")]
)
def test_a_word_that_is_not_a_verb_names_the_verb(word, verb):
    result = call(word, "x")
    assert (result.exit_code, result.output) == (2, f"error: no such command {word!r}; did you mean {verb}?\n")


def test_a_word_that_resembles_no_verb_lists_them():
    assert call("xyz").output == f"error: no such command 'xyz'; the commands are {', '.join(VERBS)}\n"


def test_the_help_lists_the_verbs_in_order_and_imports_none():
    code = (
        "import sys; from click.testing import CliRunner; from pipelines.cli import main\n"
        "print(CliRunner().invoke(main, ['--help']).output)\n"
        "assert not [name for name in sys.modules if name.startswith('pipelines.commands')]"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = process.stdout[process.stdout.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in lines if line.strip()] == list(VERBS)


def test_runs_lists_finished_and_unfinished_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("runs").output == "no runs in runs/; create one with: alfine run CONFIG\n"
    make_run(Path("runs/second"), rows=4)
    make_run(Path("runs/first"), rows=4)
    _begun(Path("runs/third"))
    result = call("runs")
    assert result.exit_code == 0 and result.output.count("mood") == 2
    assert "runs/third: not finished; resume it with: alfine run 'a b.yaml' --name third" in result.output
    assert call("runs", "runs/first").output.count("mood") == 1
    assert call("runs", "runs/none").exit_code == 2


def alfine(*arguments, **environment):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "pipelines.cli", *map(str, arguments)]
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.usefixtures("compiled_sandbox")
@pytest.mark.parametrize("arguments", [["examples"], ["report"], ["runs"]], ids=lambda words: words[0])
def test_a_closed_pipe_ends_the_command_quietly(tmp_path, arguments):
    with alfine(*arguments, demo_run(tmp_path / "r", rows=40, code=0.05)) as process:
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
@pytest.mark.parametrize("command", ["examples", "report"])
def test_an_encoding_that_lacks_characters(tmp_path, environment, command):
    run = make_run(tmp_path / "r", rows=8, base_answer="▁tea … 中 {}")
    process = alfine(command, run, **environment)
    out, errors = process.communicate()
    assert process.returncode == 0 and b"Traceback" not in errors
    assert b"\\u4e2d" in out if command == "examples" else b"mood" in out


def test_forced_color_starts_no_pager(tmp_path):
    process = alfine("examples", make_run(tmp_path / "r", rows=4), FORCE_COLOR="1", PAGER="false")
    out, _ = process.communicate()
    assert process.returncode == 0 and b"mood, row" in out


def test_a_silent_command_prints_the_heartbeat(tmp_path, monkeypatch):
    slow = write_job(tmp_path)
    monkeypatch.setattr(activity.HEARTBEAT, "interval", 0.05)

    def slow_rows(*arguments):
        for row in range(6):
            time.sleep(0.1)
            split = ["train", "test", "validation"][row // 2]
            yield Example(
                task="t",
                split=split,
                file="rows.jsonl",
                row_number=row,
                prompt="p",
                completion="yn"[row % 2],
                fields={},
            )

    monkeypatch.setattr("pipelines.checks.job.load_examples", slow_rows)
    result = call("check", slow)
    assert "reading the rows: 0." in result.stderr and ": OK (" in result.stdout
