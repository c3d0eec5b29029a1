"""The tool that a config is written for, and the one-line reasons for configs that are no training on prompts."""

import pytest
import yaml

from pipelines.config.other_tools import detect_tool
from pipelines.errors import ConfigError
from pipelines.importing.importer import import_file

HF_TRAINER = {
    "output_dir": "out",
    "logging_steps": 10,
    "save_steps": 500,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-5,
    "num_train_epochs": 3.0,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.1,
    "bf16": True,
    "report_to": "none",
    "overwrite_output_dir": True,
}
LLAMA_FACTORY = {"model_name_or_path": "o/n", "stage": "sft", "do_train": True, "dataset": "rows", "template": "qwen3"}
TRL = {"model_name_or_path": "o/n", "dataset_name": "o/rows", "max_seq_length": 64, "use_peft": True}
AXOLOTL = {"base_model": "o/n", "datasets": [{"path": "o/rows", "type": "alpaca"}]}


@pytest.mark.parametrize(
    ("config", "tool"),
    [
        ({**LLAMA_FACTORY, **HF_TRAINER, "finetuning_type": "full", "deepspeed": "ds.json"}, "a LLaMA-Factory"),
        ({**LLAMA_FACTORY, **HF_TRAINER, "stage": "pt"}, "a LLaMA-Factory"),
        ({"model_name_or_path": "o/n", "template": "qwen3", "infer_backend": "vllm"}, "a LLaMA-Factory"),
        ({"model": "o/n", "peft_config": {"name": "lora", "export_dir": "out"}}, "a LLaMA-Factory"),
        ({**TRL, **HF_TRAINER}, "a TRL or Hugging Face"),
        ({**TRL, **HF_TRAINER, "load_in_4bit": True, "lora_r": 8, "lora_alpha": 16}, "a TRL or Hugging Face"),
        (
            {**HF_TRAINER, "dataset_name": "o/rows", "do_train": True, "preprocessing_num_workers": 4},
            "a TRL or Hugging Face",
        ),
        (AXOLOTL, "an axolotl"),
        ({**AXOLOTL, "gradient_checkpointing": True, "max_steps": 5, "warmup_ratio": 0.1}, "an axolotl"),
    ],
)
def test_the_tool_of_a_config(config, tool):
    assert detect_tool(config) == tool


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**LLAMA_FACTORY, **HF_TRAINER, "stage": "pt"}, "stage: pt is pretraining on text"),
        ({**LLAMA_FACTORY, "stage": "dpo", "pref_beta": 0.1}, "stage: dpo is preferences"),
        ({**LLAMA_FACTORY, "stage": "kto"}, "stage: kto is preferences"),
        ({**LLAMA_FACTORY, "stage": "rm"}, "stage: rm is a reward model"),
        ({**LLAMA_FACTORY, "do_train": False, "do_predict": True}, "this config only evaluates"),
        ({"model_name_or_path": "o/n", "template": "q", "export_dir": "out"}, "this config writes a merged or quant"),
        ({"model_name_or_path": "o/n", "template": "q", "infer_backend": "vllm"}, "this config is for inference"),
        ({"model": "o/n", "peft_config": {"name": "lora", "export_dir": "out"}}, "peft_config: this config writes a m"),
        ({"model": "o/n", "sample_backend": "hf", "kernel_config": {}}, "this config is for inference"),
        ({**AXOLOTL, "rl": "dpo"}, "rl: trains on preferences"),
        ({**AXOLOTL, "reward_model": True}, "reward_model: trains a reward model"),
        ({**AXOLOTL, "pretraining_dataset": "x"}, "pretraining_dataset: trains on text without prompts"),
        ({**AXOLOTL, "datasets": [{"path": "x", "type": None}]}, "datasets[0]: without a type axolotl reads token ids"),
        ({**AXOLOTL, "datasets": [{"path": "x", "type": "completion"}]}, "datasets[0].type: text without a prompt"),
        ({**TRL, **HF_TRAINER}, "this is a TRL or Hugging Face config; alfine import reads configs of"),
        ({"unknown": 1}, "no config of a known tool"),
    ],
)
def test_a_config_that_cannot_be_imported_is_refused_with_its_reason(config, reason, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError) as caught:
        import_file(path)
    assert caught.value.problems[0].message.startswith(reason)


@pytest.mark.parametrize(("field", "changes"), [("reasoning_content", False), ("thoughts", True)])
def test_the_key_of_a_thought_in_axolotl(field, changes, tmp_path):
    dataset = {"path": "o/rows", "type": "chat_template", "field_thinking": field, "template_thinking_key": "thinking"}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**AXOLOTL, "datasets": [dataset]}))
    draft = import_file(path)
    assert (("datasets", 0, "field_thinking") in draft.changed) is changes
    assert not [key for key in draft.dropped if "thinking" in str(key)]
