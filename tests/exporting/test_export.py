"""Exports of tiny runs: complete, portable, atomic; what cannot be exported is one line."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pipelines.cli import main
from pipelines.prediction.models import load_tuned, tuned_job
from tests.exporting.portable_adapter import equal_answers
from tests.jobs import run

pytestmark = pytest.mark.ludwig


def invoke(*arguments):
    return CliRunner().invoke(main, list(map(str, arguments)))


def exported(*arguments):
    result = invoke("export", *arguments)
    assert result.exit_code == 0, result.output + result.stderr
    return Path(result.stdout.strip().splitlines()[-1].removeprefix("export: "))


def logits(model):
    with torch.no_grad():
        return model(torch.arange(5, 30)[None]).logits


def tuned_logits(folder):
    from pipelines.storage.run_folder import Run

    opened = Run.open(folder)
    return logits(load_tuned(opened, tuned_job(opened)).model)


def check_portable(folder, project):
    """No file names a path of this machine, and none is missing from export.json."""
    record = json.loads((folder / "export.json").read_text())
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {file["name"] for file in record["files"]} | {"export.json"}
    for name in names:
        content = (folder / name).read_bytes()
        for path in (project, Path.home(), Path.cwd()):
            assert str(path).encode() not in content, name


def test_exports_of_an_adapter_are_the_tuned_model(project, tmp_path_factory):
    folder = run().folder
    merged = exported(folder)
    assert merged == folder / "export" / "merged" and not (folder / "export" / "merged.partial").exists()
    expected = tuned_logits(folder)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), expected, atol=1e-5, rtol=1e-5)
    check_portable(merged, project)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    settings = GenerationConfig.from_pretrained(merged)
    assert settings.eos_token_id == tokenizer.eos_token_id and settings.do_sample is False
    assert settings.max_new_tokens == 6

    adapter = exported(folder, "--to", "adapter", "--output", project / "elsewhere" / "adapter")
    check_portable(adapter, project)
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "base"
    base = AutoModelForCausalLM.from_pretrained(project / "base")
    torch.testing.assert_close(logits(PeftModel.from_pretrained(base, adapter)), expected, atol=1e-5, rtol=1e-5)

    # Plain PEFT elsewhere, with the base in a folder, and with the base found by its id in a cache of the Hub.
    counts = equal_answers(folder, tmp_path_factory.mktemp("other"), None)
    assert len(counts) == 2
    assert all(by_task and all(is_equal for _, is_equal in by_task) for by_task in counts.values())

    half = exported(folder, "--dtype", "bf16", "--output", project / "half")
    assert AutoModelForCausalLM.from_pretrained(half).dtype == torch.bfloat16
    assert json.loads((half / "export.json").read_text())["dtype"] == "bfloat16"

    refused = invoke("export", folder)
    assert refused.exit_code == 2 and "--force" in refused.stderr and refused.stderr.count("\n") == 1
    (merged / "README.md").write_text("mine")
    exported(folder, "--force")
    (project / "mine").mkdir()
    (project / "mine" / "notes.txt").write_text("mine")
    refused = invoke("export", folder, "--force", "--output", project / "mine")
    assert refused.exit_code == 2 and "is not an export" in refused.stderr
    assert (project / "mine" / "notes.txt").read_text() == "mine"


def test_a_run_that_trained_all_weights(project):
    config = json.loads(Path("job.yaml").read_text())
    del config["adapter"]
    Path("job.yaml").write_text(json.dumps(config))
    folder = run("full").folder
    merged = exported(folder)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), tuned_logits(folder))
    check_portable(merged, project)
    refused = invoke("export", folder, "--to", "adapter")
    assert refused.exit_code == 2 and "--to merged" in refused.stderr and refused.stderr.count("\n") == 1
