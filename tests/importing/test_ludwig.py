"""Ludwig configs as jobs."""

import pytest

from pipelines.errors import ConfigError
from tests.importing.imports import changes, imported, reasons

FEATURES = """
model_type: llm
base_model: someone/model-1b
input_features: [{name: question, type: text}]
output_features: [{name: answer, type: text}]
"""
FINETUNE = FEATURES + "trainer: {type: finetune, epochs: 2, batch_size: 4}\n"


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def task_of(text):
    return imported(text, "rows.jsonl")[1].pipeline.tasks["rows"]


def test_the_features_are_the_templates():
    draft, job = imported(FINETUNE, "rows.jsonl")
    task = job.pipeline.tasks["rows"]
    assert (task.data, task.prompt, task.completion) == ("rows.jsonl", "{question}", "{answer}")
    assert job.pipeline.chat_template is False
    assert (job.trainer["epochs"], job.trainer["batch_size"]) == (2, 4)
    assert not draft.changed
    assert not draft.dropped


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ('{template: "Q: {question}\\nA:"}', "Q: {question}\nA:"),
        ("{template: 'Q: {__sample__} of {year:.1f}'}", "Q: {question} of {year}"),
        ("{task: 'say {x}', template: '{__task__}: {__sample__}'}", "say {{x}}: {question}"),
        ("{template: 'As JSON {{}}: {other}'}", "As JSON {{}}: {other}"),
        ("{template: 'See {__context__}{__sample__}', retrieval: {type: random, k: 2}}", "See {question}"),
        (
            "{task: translate}",
            "SAMPLE INPUT: {question}\n\nUSER: Complete the following task: translate\n\nASSISTANT:\n",
        ),
    ],
)
def test_prompt(prompt, expected):
    assert task_of(f"{FINETUNE}prompt: {prompt}\n").prompt == expected


def test_prompt_of_the_feature():
    feature = "{name: question, type: text, preprocessing: {prompt: {template: 'Q {question}'}}}"
    assert task_of(FINETUNE.replace("{name: question, type: text}", feature)).prompt == "Q {question}"


def test_a_category_is_scored_by_exact_match():
    text = FINETUNE.replace("{name: answer, type: text}", "{name: answer, type: category, decoder: {type: x}}")
    draft, job = imported(text, "rows.jsonl")
    assert job.pipeline.tasks["rows"].metric == "exact_match"
    assert reasons(draft) == {"output_features[0].decoder": "the completion is compared as a whole"}


def test_defaults_of_ludwig_are_written():
    _, job = imported(FEATURES + "trainer: {type: finetune}\n", "rows.jsonl")
    assert (job.trainer["epochs"], job.trainer["batch_size"]) == (100, 1)
    assert (job.pipeline.split.validation, job.pipeline.split.test) == (0.1, 0.2)
    draft, _ = imported(FEATURES + "trainer: {type: finetune, train_steps: 7}\n", "rows.csv")
    assert "epochs" not in draft.config["trainer"]


def test_a_config_without_training_is_said_to_be_trained():
    draft, _ = imported(FEATURES, "rows.jsonl")
    assert draft.notes == ["without trainer.type: finetune, Ludwig only evaluates; this job fine-tunes"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("{type: random, probabilities: [0.8, 0.15, 0.05]}", (0.15, 0.05)),
        ("{probabilities: [0.9, 0.1, 0]}", (0.1, 0.1)),
        ("{type: stratify, column: answer, probabilities: [0.6, 0.2, 0.2]}", (0.2, 0.2)),
        ("{type: fixed}", (0.1, 0.1)),
    ],
)
def test_split(split, expected):
    _, job = imported(f"{FINETUNE}preprocessing: {{split: {split}}}\n", "rows.jsonl")
    assert (job.pipeline.split.validation, job.pipeline.split.test) == expected


@pytest.mark.parametrize(
    ("sections", "key", "reason"),
    [
        ("preprocessing: {sample_ratio: 0.1}", "preprocessing.sample_ratio", "alfine reads the rows itself"),
        ("adapter: {type: lora, eva_config: {rho: 2.0}}", "adapter.eva_config", "statistics that EVA requires"),
        ("adapter: {type: lora, init_lora_weights: loftq}", "adapter.init_lora_weights", "4-bit approximations"),
        ("quantization: {bits: 4}", "quantization", "requires an adapter of type lora"),
        ("generation: {max_time: 3}", "generation.max_time", "depend on the speed of the machine"),
        ("hyperopt: {goal: minimize}", "hyperopt", "a config is one training run"),
        ("backend: {type: ray, processor: {parallelism: 4}}", "backend.processor", "no such key"),
        ("generation: {frobnicate: 3}", "generation.frobnicate", "Ludwig 0.17.10 has no such key"),
    ],
)
def test_keys_without_effect_are_dropped_with_the_reason(sections, key, reason):
    draft, _ = imported(f"{FINETUNE}{sections}\n", "rows.jsonl")
    assert reason in reasons(draft)[key]


def test_values_that_alfine_does_not_choose():
    adapter, trainer = "{type: adalora, init_r: 4}", "{type: finetune, learning_rate: auto, batch_size: auto}"
    draft, job = imported(f"{FEATURES}adapter: {adapter}\ntrainer: {trainer}\n", "rows.jsonl")
    assert (job.trainer["learning_rate"], job.trainer["batch_size"]) == (0.0001, 8)
    assert job.adapter == {"type": "lora"}
    assert set(changes(draft)) == {"trainer.learning_rate", "trainer.batch_size", "adapter.type"}


def test_effective_batch_size():
    trainer = "{type: finetune, batch_size: 2, effective_batch_size: 16, gradient_accumulation_steps: auto}"
    _, job = imported(f"{FEATURES}trainer: {trainer}\n", "rows.jsonl")
    assert (job.trainer["batch_size"], job.trainer["effective_batch_size"]) == ("auto", 16)


def test_sampling_is_the_default_of_ludwig():
    _, job = imported(FINETUNE + "generation: {temperature: 0.1}\n", "rows.jsonl")
    assert job.generation["do_sample"] is True


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model_type: llm", "model_type: ecd", "config.yaml:2: model_type: only configs of model_type: llm"),
        ("type: finetune", "type: dpo", "config.yaml:6: trainer.type: dpo trains on preferences"),
        ("{name: question, type: text}", "{name: question, type: image}", "alfine trains only on text"),
        ("[{name: question, type: text}]", "3", "expected a list of one feature with a name"),
        ("base_model: someone/model-1b", "base_model: [1]", "config.yaml:3: base_model: expected a hub id or a folder"),
    ],
)
def test_refused(old, new, message):
    with pytest.raises(ConfigError) as raised:
        imported(FINETUNE.replace(old, new), "rows.jsonl")
    assert message in str(raised.value)


def test_data_is_required():
    with pytest.raises(ConfigError, match="add --data FILE"):
        imported(FINETUNE)
