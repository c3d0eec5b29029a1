"""The steps of a training with Ludwig equal those of plain Hugging Face and torch."""

import json
import shutil

import ludwig.backend
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipelines.data.mixing import sample_epoch
from pipelines.data.tokenize_rows import open_split
from pipelines.modeling.token_dataset import TokenDataset
from pipelines.storage.run_folder import Run
from pipelines.training.ludwig_config import ludwig_config
from pipelines.training.train import train
from pipelines.training.trainer import FineTuneTrainer
from tests.jobs import LORA, run_training

pytestmark = pytest.mark.ludwig


@pytest.fixture
def first_weights(monkeypatch):
    """The trainable weights before the first step, by the names that PEFT gives them."""
    weights = {}
    train_step = FineTuneTrainer.train_step

    def train_step_with_copy(self, inputs, *arguments, **keywords):
        if not weights:
            parameters = self.model.model.named_parameters()
            weights.update({name: weight.detach().clone() for name, weight in parameters if weight.requires_grad})
        return train_step(self, inputs, *arguments, **keywords)

    monkeypatch.setattr(FineTuneTrainer, "train_step", train_step_with_copy)
    return weights


def padded_batch_loss(model, rows):
    """Right padding, an attention mask, -100 labels, and the mean over the supervised tokens."""
    width = max(len(ids) for ids in rows.input_ids)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for index, (row, spans) in enumerate(zip(rows.input_ids, rows.supervised_spans, strict=True)):
        tokens = torch.from_numpy(row.astype(np.int64))
        ids[index, : len(row)], mask[index, : len(row)] = tokens, 1
        for start, end in spans:
            labels[index, start:end] = tokens[start:end]
    logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels[:, 1:].reshape(-1), ignore_index=-100)


CASES = [
    (kind, adapter, 1)
    for kind in ("pad_is_eos", "adds_bos", "no_pad", "no_template", "sentencepiece")
    for adapter in (LORA, None)
]
CASES += [("pad_is_eos", adapter, 3) for adapter in (LORA, None)]


@pytest.mark.parametrize(
    ("kind", "adapter", "accumulate"), CASES, ids=[f"{k}-{'lora' if a else 'full'}-accumulate{n}" for k, a, n in CASES]
)
def test_three_steps_equal_plain_hugging_face(make_job, first_weights, kind, adapter, accumulate):
    job, run, base = make_job(adapter, kind, batch_size=6 // accumulate, gradient_accumulation_steps=accumulate)
    run_training(job, run, base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    if adapter:
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
        # The adapter's initial weights are random. Everything after them is computed here.
        model.load_state_dict(first_weights, strict=False)
    weights = load_file(run.path("model", "adapter_model.safetensors" if adapter else "model.safetensors"))
    data = TokenDataset.from_table(open_split(run.path("data"), "train"))
    order = sample_epoch(data.tasks, {"t": 1.0}, 3, 0, True)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)
    history = json.loads(run.path("model", "training.json").read_text())
    for step in range(3):
        loss = padded_batch_loss(model, data.sequences.select(order[6 * step : 6 * step + 6]))
        assert float(loss.detach()) == pytest.approx(history["train_loss"][step]["loss"], abs=1e-5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 0.5)
        optimizer.step()
        optimizer.zero_grad()
    expected = {name.replace(".default.weight", ".weight"): weight for name, weight in model.state_dict().items()}
    for name, weight in weights.items():
        torch.testing.assert_close(
            weight, expected[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_validation_loss_per_task_and_best_checkpoint(make_job):
    job, run, base = make_job(LORA, epochs=3, checkpoints_per_epoch=1)
    steps = run_training(job, run, base)
    history = json.loads(run.path("model", "training.json").read_text())
    assert [entry["step"] for entry in history["validation_loss"]] == [3, 6, 9]
    assert all(entry["tasks"]["t"] == pytest.approx(entry["loss"]) for entry in history["validation_loss"])
    best = min(history["validation_loss"], key=lambda entry: entry["loss"])
    assert history["best_step"] == best["step"]
    assert steps[-1][:2] == (9, 9)
    assert (
        history["rows"] == 3 * 18
        and history["supervised_tokens"]
        == 3 * TokenDataset.from_table(open_split(run.path("data"), "train")).sequences.num_supervised_tokens
    )


def test_the_last_steps_are_evaluated(make_job):
    job, run, base = make_job(LORA, checkpoints_per_epoch=2, batch_size=4)
    run_training(job, run, base)
    history = json.loads(run.path("model", "training.json").read_text())
    assert [entry["step"] for entry in history["validation_loss"]] == [2, 4, 5]


def test_a_resumed_run_equals_an_uninterrupted_one(make_job):
    settings = {
        "epochs": 2,
        "steps_per_checkpoint": 2,
        "optimizer": {"type": "adamw"},
        "learning_rate_scheduler": {"decay": "linear"},
    }
    job, run, base = make_job({**LORA, "dropout": 0.1}, **settings)
    run_training(job, run, base)
    expected = load_file(run.path("model", "adapter_model.safetensors"))
    history = json.loads(run.path("model", "training.json").read_text())

    second_run = Run(run.folder.with_name("second"))
    shutil.copytree(run.path("data"), second_run.path("data"))

    def stop_after_five(done, total, loss):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(job, second_run, base, stop_after_five)
    assert not second_run.path("model").exists()
    assert run_training(job, second_run, base)[0][0] == 4
    resumed = load_file(second_run.path("model", "adapter_model.safetensors"))
    assert resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert json.loads(second_run.path("model", "training.json").read_text())["train_loss"] == history["train_loss"]


def test_a_ray_cluster_on_the_machine_is_not_joined(make_job, monkeypatch):
    joined = []
    monkeypatch.setattr("ludwig.backend._has_ray", lambda: True)
    monkeypatch.setitem(ludwig.backend.backend_registry, "ray", lambda **_: joined.append("ray"))
    run_training(*make_job(LORA))
    assert not joined


def test_ludwig_accepts_the_config(make_job):
    from ludwig.config_validation.validation import check_schema
    from ludwig.schema.model_types.base import ModelConfig

    job, _, base = make_job(LORA)
    config = ludwig_config(job, base, 18)
    check_schema(config)
    assert ModelConfig.from_dict(config).trainer.learning_rate == 0.01
