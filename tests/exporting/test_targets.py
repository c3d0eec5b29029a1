"""Exports of runs that are special: continued, quantized, with other adapters, plain prompts, reasoning; bad arguments."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.exporting.test_export import check_portable, exported, invoke, logits, tuned_logits
from tests.jobs import run

pytestmark = pytest.mark.ludwig


def change_job(**changes):
    config = json.loads(Path("job.yaml").read_text())
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        target = config[section] if section else config
        target[name] = value
    Path("job.yaml").write_text(json.dumps(config))


def check_of(folder):
    return json.loads((folder / "export.json").read_text())["check"]


def one_line(result, *texts, code=2):
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.exit_code == code and len(errors) == 1 and "Traceback" not in result.output + result.stderr
    for text in texts:
        assert text in errors[0], errors[0]


def test_a_continued_run_has_the_earlier_model_as_its_base(project):
    earlier = run("first").folder
    folder = run("second", f"pipeline.continue_from={earlier}", "pipeline.seed=5").folder
    expected = tuned_logits(folder)
    merged = exported(folder)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(merged)), expected, atol=1e-5, rtol=1e-5)
    adapter = exported(folder, "--to", "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "first-merged"
    record = json.loads((adapter / "export.json").read_text())
    assert record["base"]["on_hub"] is False and "not on the Hub" in " ".join(record["notes"])
    check_portable(adapter, project)
    base = exported(earlier)  # what the adapter's base is, for other machines
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)


def test_plain_prompts_and_no_template(project):
    change_job(pipeline__chat_template=False)
    folder = run().folder
    merged = exported(folder)
    assert AutoTokenizer.from_pretrained(merged).chat_template is None
    assert check_of(merged)["equal_prompts"] == check_of(merged)["rows"] > 0
    assert "Prompts are plain text" in (merged / "README.md").read_text()


def test_a_template_file_with_variables_and_a_date(project):
    Path("mine.jinja").write_text(
        "{{ bos_token }}{{ strftime_now('%Y') }} {{ mood }}{% for m in messages %}[{{ m.role }}] {{ m.content }} {{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    change_job(pipeline__chat_template="mine.jinja", pipeline__chat_template_kwargs={"mood": "kind"})
    folder = run().folder
    merged = exported(folder)
    check = check_of(merged)
    assert check["passed"] and check["equal_prompts"] == check["rows"]
    text = AutoTokenizer.from_pretrained(merged).apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert "kind" in text


def test_sampled_runs_are_checked_without_sampling(project):
    change_job(generation={"do_sample": True, "temperature": 0.7, "max_new_tokens": 6})
    folder = run().folder
    merged = exported(folder)
    check = check_of(merged)
    assert "greedy" in check["reference"] and check["equal_answers"] == check["rows"]
    settings = json.loads((merged / "generation_config.json").read_text())
    assert settings["do_sample"] is True and settings["temperature"] == 0.7


def test_a_loss_as_metric_is_measured_on_the_export(project):
    config = json.loads(Path("job.yaml").read_text())
    config["pipeline"]["tasks"]["say"]["metric"] = "nll"
    Path("job.yaml").write_text(json.dumps(config))
    merged = exported(run().folder)
    task = check_of(merged)["tasks"]["say"]
    assert task["unit"] == "nats/token" and abs(task["delta"]) < 1e-4 and task["run"] > 0


@pytest.mark.parametrize("adapter", [{"type": "ia3", "feedforward_modules": ["down_proj"]}, {"type": "lokr", "r": 4}])
def test_other_adapters_are_merged(project, adapter):
    change_job(adapter={**adapter, "target_modules": ["k_proj", "v_proj", "down_proj"]})
    folder = run().folder
    merged = exported(folder)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(merged)), tuned_logits(folder), atol=1e-5, rtol=1e-5
    )


def test_a_quantized_base_is_dequantized(project):
    pytest.importorskip("bitsandbytes")
    change_job(quantization={"bits": 4})
    folder = run().folder
    merged = exported(folder, "--dtype", "fp32")
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    assert "dequantized" in (merged / "README.md").read_text()
    check = check_of(merged)
    assert check["passed"] and not check["must_be_equal"]
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(merged)).float(), tuned_logits(folder).float(), atol=0.2, rtol=0.2
    )
    adapter = exported(folder, "--to", "adapter")
    assert (
        check_of(adapter)["passed"]
        and "load the base with the same quantization" in (adapter / "README.md").read_text()
    )


def test_a_wrong_export_fails_its_check(project, monkeypatch):
    from pipelines.exporting import export as module

    original = module.write_merged

    def broken(source, folder, dtype):
        notes = original(source, folder, dtype)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            for parameter in model.model.layers[0].parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
        model.save_pretrained(folder)
        return notes

    folder = run().folder
    monkeypatch.setattr(module, "write_merged", broken)
    result = invoke("export", folder)
    assert result.exit_code == 3 and "check failed: " in result.stderr and "answers differ" in result.stderr
    merged = folder / "export" / "merged"
    assert check_of(merged)["passed"] is False and "**Failed.**" in (merged / "README.md").read_text()
    template = folder / "model" / "chat_template.jinja"
    assert template.is_file() or True


def test_bad_arguments_are_one_line_and_write_nothing(project):
    folder = run().folder
    one_line(invoke("export", folder, "--check-rows", "some"), "--check-rows 32")
    one_line(invoke("export", folder, "--to", "adapter", "--dtype", "bf16"), "--dtype is for --to merged")
    one_line(invoke("export", folder, "--to", "gguf", "--dtype", "bf16"), "--quantize")
    one_line(invoke("export", folder, "--quantize", "q8_0"), "--quantize is for --to gguf")
    one_line(invoke("export", project / "nowhere"), "is not a run folder")
    Path("file").write_text("x")
    one_line(invoke("export", folder, "--output", "file"), "is not a folder")
    shutil.copytree(folder, "unfinished")
    manifest = json.loads(Path("unfinished/manifest.json").read_text())
    del manifest["stages"]["eval_tuned"]
    Path("unfinished/manifest.json").write_text(json.dumps(manifest))
    one_line(invoke("export", "unfinished"), "is not finished", "alfine run job.yaml")
    del manifest["stages"]["train"]
    Path("unfinished/manifest.json").write_text(json.dumps(manifest))
    one_line(invoke("export", "unfinished"), "no tuned model yet")
    shutil.copytree(folder, "damaged")
    (Path("damaged") / "model" / "adapter_model.safetensors").unlink()
    one_line(invoke("export", "damaged", "--to", "adapter"), "adapter_model.safetensors")
    one_line(invoke("export", "damaged"), "adapter_model.safetensors")
    assert not list(folder.glob("export*")) and not Path("damaged/export/merged").exists()
