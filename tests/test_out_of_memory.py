"""Memory runs out in each stage: the same results from smaller parts, and one line if a single row does not fit."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import MachineError
from pipelines.evaluation.completions import InferenceSettings, LoadedModel, complete
from pipelines.evaluation.retention import score_retention_eval
from pipelines.forgetting.fisher_information import lora_fisher, weight_fisher
from pipelines.forgetting.strategies.replay import Replay
from pipelines.forgetting.teacher import cache_teacher_topk
from pipelines.modeling.adapters import disabled_adapter_is_base
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.reference_model import ReferenceModel
from pipelines.modeling.token_dataset import TokenDataset, validation_losses
from tests.evaluation.retention_evals.files import load, prepare, write_rows
from tests.forgetting.strategies.test_si import make_si
from tests.forgetting.test_strategies_in_training import few_general_rows, own_cache
from tests.forgetting.tiny_lora import base, lora, rows, sgd
from tests.jobs import LORA, run, run_training
from tests.out_of_memory import TokenLimit
from tests.tiny import make_model

__all__ = ["few_general_rows", "own_cache"]

ADAM = {"optimizer": {"type": "adamw"}, "learning_rate": 0.003}
DROPOUT = {**LORA, "dropout": 0.3}
ONE_ROW = r"^out of memory during .* \(an allocation of 2\.7 GB failed, .* free without it\); use "


def longest(sequences):
    return max(map(len, sequences.input_ids))


# --- evaluation ----------------------------------------------------------------------------------------


def test_validation_loss(tmp_path, monkeypatch):
    model, data = base(tmp_path / "m"), TokenDataset(rows(12), ["a", "b"] * 6)
    expected = validation_losses(model, data)
    limit = TokenLimit(monkeypatch, longest(data.sequences) + 5)
    losses = validation_losses(model, data)
    assert limit.failures and losses["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert losses["tasks"] == pytest.approx(expected["tasks"], rel=1e-5)
    TokenLimit(monkeypatch, longest(data.sequences) - 1)
    with pytest.raises(MachineError, match=ONE_ROW) as error:
        validation_losses(model, data)
    assert "during the validation loss with 1 row of" in str(error.value)


@pytest.mark.parametrize("kind", ["multiple_choice", "text_nll", "kl", "task"])
def test_retention_evals(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path)
    loaded = load(tmp_path / "m")
    reference = ReferenceModel(loaded.model).logits
    prepared = prepare(loaded)[kind]
    expected = score_retention_eval(loaded, prepared, reference)
    tokens = {"multiple_choice": 100, "text_nll": 35, "kl": 150, "task": 30}[kind]
    limit = TokenLimit(monkeypatch, tokens)
    scores = score_retention_eval(loaded, prepared, reference)
    assert limit.failures and scores == pytest.approx(expected, rel=1e-4)
    TokenLimit(monkeypatch, 2)
    with pytest.raises(MachineError, match=ONE_ROW):
        score_retention_eval(loaded, prepared, reference)


@pytest.mark.parametrize("decoding", ["generate", "slots"])
def test_completions_and_the_loss_of_their_references(tmp_path, monkeypatch, decoding):
    folder = make_model(tmp_path / "m", initializer_range=0.5)
    settings = InferenceSettings(decoding)
    loaded = LoadedModel(load_causal_lm(folder, allow_half_precision=True), PromptFormat.from_folder(folder), settings)
    rng = np.random.default_rng(0)
    prompts = [[int(token) for token in rng.integers(5, 200, length)] for length in rng.integers(2, 20, 9)]
    references = [prompt[:3] for prompt in prompts]
    limits = [6, 6, 6, 9, 9, 9, 9, 6, 6]
    expected = complete(loaded, prompts, {"do_sample": False}, limits, references=references)
    limit, counts = TokenLimit(monkeypatch, 40), []
    completions = complete(loaded, prompts, {"do_sample": False}, limits, counts.append, references)
    assert limit.failures and sum(counts) == len(prompts) and max(counts) < 5
    assert [completion.text for completion in completions] == [completion.text for completion in expected]
    nlls = [completion.reference_nll for completion in expected]
    assert [completion.reference_nll for completion in completions] == pytest.approx(nlls, rel=1e-4)
    TokenLimit(monkeypatch, 1)
    with pytest.raises(MachineError, match="out of memory during completions with 1 row of"):
        complete(loaded, prompts, {"do_sample": False}, limits, references=references)


# --- before training -----------------------------------------------------------------------------------


def test_teacher(tmp_path, monkeypatch):
    folder, data = make_model(tmp_path / "teacher"), rows(11)
    expected = cache_teacher_topk(folder, data, 4, 1.0, tmp_path / "expected")
    limit = TokenLimit(monkeypatch, 45)  # more than the probe batch of loading
    topk = cache_teacher_topk(folder, data, 4, 1.0, tmp_path / "small")
    assert limit.failures and topk.keys() == expected.keys()
    for key, predicted in topk.items():
        assert torch.equal(predicted.tokens, expected[key].tokens)
        torch.testing.assert_close(predicted.log_probs, expected[key].log_probs)


@pytest.mark.parametrize("kronecker", [False, True], ids=["factored", "kronecker"])
def test_fisher_information_under_lora(tmp_path, monkeypatch, kronecker):
    data = rows(9)
    model = lora(tmp_path / "m")
    expected = lora_fisher(model, data, seed=0, kronecker=kronecker)
    limit = TokenLimit(monkeypatch, 2 * longest(data))
    fisher = lora_fisher(model, data, seed=0, kronecker=kronecker)
    assert limit.failures == 2  # 8 rows, then 4
    for name, factors in fisher.items():
        torch.testing.assert_close(factors.output, expected[name].output, rtol=1e-4, atol=1e-10)
        torch.testing.assert_close(factors.input, expected[name].input, rtol=1e-4, atol=1e-10)
    TokenLimit(monkeypatch, longest(data) - 1)
    with pytest.raises(MachineError, match="measurement of the Fisher information with 1 row of"):
        lora_fisher(model, data, seed=0, kronecker=kronecker)


def test_fisher_information_of_all_weights(tmp_path, monkeypatch):
    data, model = rows(3), base(tmp_path / "m")
    TokenLimit(monkeypatch, longest(data) - 1)
    with pytest.raises(MachineError, match=rf"the Fisher information, with a row of {longest(data)} tokens"):
        weight_fisher(model, data, seed=0)


@pytest.mark.parametrize("build", [base, lora])
def test_importance_of_si(tmp_path, monkeypatch, build):
    data, results, other_model = rows(16), [], build(tmp_path / "m")
    for name, tokens in (("all", math.inf), ("small", 2 * longest(data))):
        model = build(tmp_path / "m").train()
        if build is lora:
            disabled_adapter_is_base(model)  # recorded: its probe batch has more tokens than the limit
        limit = TokenLimit(monkeypatch, tokens)
        si = make_si(tmp_path / name, data, importance_steps=2)
        si.setup(model, sgd(model))
        results.append(load_file(tmp_path / name / "general.safetensors"))
    assert limit.failures and results[0].keys() == results[1].keys()
    for name, importance in results[0].items():
        # Ω divides by squared moves, of which those near 0 differ in their last bits.
        assert torch.allclose(results[1][name], importance, rtol=0.02, atol=1e-3 * float(importance.max())), name
    TokenLimit(monkeypatch, longest(data) - 1)
    si = make_si(tmp_path / "never", data, importance_steps=2)
    with pytest.raises(MachineError, match="measurement of si's importance with 1 row of"):
        si.setup(other_model, sgd(other_model))


def test_loading(tmp_path, monkeypatch):
    folder = make_model(tmp_path / "m")
    TokenLimit(monkeypatch, 2)
    with pytest.raises(MachineError, match=r"the loading of a model \(an allocation of .*; use a smaller base_model"):
        load_causal_lm(folder, allow_half_precision=True)


# --- training ------------------------------------------------------------------------------------------


def trained(make_job, name, adapter=DROPOUT, **settings):
    """The weights and the history of a training."""
    job, run, folder = make_job(adapter, name=name, **{**ADAM, **settings})
    run_training(job, run, folder)
    file = "adapter_model.safetensors" if adapter else "model.safetensors"
    return load_file(run.path("model", file)), json.loads(run.path("model", "training.json").read_text())


REPLAY = {"strategy": "replay+distill", "replay": {"fraction": 0.95}}


@pytest.mark.ludwig
@pytest.mark.parametrize("adapter", [DROPOUT, None], ids=["lora", "full"])
def test_own_rows_of_strategies_start_over_with_smaller_parts(make_job, monkeypatch, adapter):
    """Bitwise the training whose strategies have these smaller parts from the start, dropout included."""
    settings = {"forgetting": REPLAY, "batch_size": 2, "gradient_accumulation_steps": 3}
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "micro_batch_size", 2)
        expected, _ = trained(make_job, "small", adapter, **settings)
    limit = fail_beyond_rows(monkeypatch, 2)
    weights, history = trained(make_job, "large", adapter, **settings)
    assert limit.failures and history["strategy_micro_batch"] == 2
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name


def fail_beyond_rows(monkeypatch, max_rows):
    """Passes over more than `max_rows` of the strategies' own rows run out of memory, after the backward pass of the
    parts before them."""
    limit = type("Limit", (), {"failures": 0})
    losses = Replay.losses_on_own_rows

    def limited(self, loss_denominator):
        for index, loss in enumerate(losses(self, loss_denominator)):
            if min(self.micro_batch_size, len(self.current_rows)) > max_rows and index == 0:
                yield loss
                limit.failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB")
            yield loss

    monkeypatch.setattr(Replay, "losses_on_own_rows", limited)
    return limit


@pytest.mark.ludwig
@pytest.mark.parametrize("stage", ["measuring", "step", "own rows", "cublas"])
def test_a_row_that_does_not_fit_in_training(make_job, monkeypatch, stage):
    auto = {"batch_size": "auto", "effective_batch_size": 6} if stage == "measuring" else {}
    job, job_run, folder = make_job(LORA, forgetting=REPLAY if stage == "own rows" else "none", **ADAM, **auto)
    if stage == "own rows":
        fail_beyond_rows(monkeypatch, 0)
    else:
        from pipelines.training.trainer import FineTuneTrainer  # Ludwig: seconds that the other tests do not need

        error = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED") if stage == "cublas" else torch.OutOfMemoryError

        def backward(self, batch, loss_denominator, weight=1.0):
            raise error

        monkeypatch.setattr(FineTuneTrainer, "_backward_micro_batch", backward)
    with pytest.raises(MachineError) as caught:
        run_training(job, job_run, folder)
    message = str(caught.value)
    assert re.match("out of memory during a training step", message) and "\n" not in message
    assert "use trainer.enable_gradient_checkpointing: true, shorter rows" in message
    assert not job_run.path("model").exists()


@pytest.mark.ludwig
def test_memory_for_the_optimizer(make_job, monkeypatch):
    def step(self, closure=None):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB")

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    job, job_run, folder = make_job(LORA)
    with pytest.raises(
        MachineError, match=r"during the optimizer's step \(.*\); use an adapter, trainer.optimizer.type"
    ):
        run_training(job, job_run, folder)


@pytest.mark.ludwig
def test_a_run_with_little_memory_in_every_stage(project, monkeypatch):
    """The same losses up to rounding errors. A run that failed for lack of memory can be resumed."""
    # A prompt with examples is longer than what the other passes are limited to.
    config = yaml.safe_load(Path("job.yaml").read_text())
    config["pipeline"].setdefault("report", {})["few_shot"] = 0
    Path("job.yaml").write_text(yaml.safe_dump(config))
    expected = run("all")
    with monkeypatch.context() as patch:
        patch.setenv("ALFINE_CACHE", str(project / "cache2"))
        TokenLimit(patch, 75)
        small = run("small")
    histories = [json.loads(one.path("model", "training.json").read_text()) for one in (expected, small)]
    assert histories[1]["micro_batch"]["rows"] < 8
    losses = [[entry["loss"] for entry in history["train_loss"]] for history in histories]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # AdamW enlarges rounding errors
    for model in ("base", "tuned"):
        files = [one.path(model, "completions.jsonl") for one in (expected, small)]
        nlls = [[json.loads(line)["reference_nll"] for line in file.read_text().splitlines()] for file in files]
        assert nlls[1] == pytest.approx(nlls[0], rel=1e-2) and nlls[0]
    monkeypatch.setenv("ALFINE_CACHE", str(project / "cache3"))
    with monkeypatch.context() as patch:
        TokenLimit(patch, 30)  # the probe batch has 35 tokens
        with pytest.raises(MachineError, match="out of memory during the loading of a model"):
            run("never")
    assert not Path("runs/never/base").exists()
    assert run("never").manifest["stages"].keys() == expected.manifest["stages"].keys()
