"""The Fisher information against its definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.forgetting.fisher_information import lora_fisher, sampled_gradient, weight_fisher
from pipelines.forgetting.penalty import lora_pairs
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.process_group import ProcessGroup
from pipelines.modeling.token_sequences import TokenSequences
from tests.forgetting.tiny_lora import base, lora, rows


class LinearSoftmax(torch.nn.Module):
    """logits = W·x, x a fixed vector for each token: a model whose Fisher information can be written down."""

    class config:
        _attn_implementation = "none"

    def __init__(self, classes=5, features=3):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(classes, features))
        self.register_buffer("x", torch.randn(50, features))

    def forward(self, input_ids, position_ids, use_cache, logits_to_keep):
        class Output:
            logits = (self.x[input_ids] @ self.weight.T)[:, logits_to_keep]

        return Output


def test_fisher_of_a_linear_softmax_is_the_closed_form():
    model = LinearSoftmax()
    rng = np.random.default_rng(0)
    data = TokenSequences.supervised_from([rng.integers(0, 50, 2) for _ in range(4000)], [1] * 4000)
    data.input_ids[0][1] = data.input_ids[0][1] % 5
    fisher = weight_fisher(model, data, seed=0)["weight"]
    x = model.x[torch.tensor([ids[0] for ids in data.input_ids])]
    p = (x @ model.weight.T).softmax(-1)
    expected = ((p * (1 - p))[:, :, None] * (x**2)[:, None, :]).mean(dim=0)
    assert torch.allclose(fisher, expected, rtol=0.2, atol=0.01)
    assert (fisher - expected).norm() / expected.norm() < 0.06


def test_fisher_over_several_spans_is_per_supervised_token():
    model = LinearSoftmax()
    rng = np.random.default_rng(0)
    input_ids = [np.concatenate([rng.integers(0, 5, 3), rng.integers(0, 50, 3)]) for _ in range(4000)]
    data = TokenSequences(input_ids, [[(1, 2), (3, 5)]] * 4000)
    fisher = weight_fisher(model, data, seed=0)["weight"]
    x = model.x[torch.tensor([ids[position] for ids in input_ids for position in (0, 2, 3)])]
    p = (x @ model.weight.T).softmax(-1)
    expected = ((p * (1 - p))[:, :, None] * (x**2)[:, None, :]).mean(dim=0)
    assert (fisher - expected).norm() / expected.norm() < 0.06


def test_half_delta_f_delta_is_the_kl_divergence_of_a_small_step():
    """½ Δᵀ F Δ / KL → 1, with F = E_y[∇log p(y) ∇log p(y)ᵀ] in full."""
    model = LinearSoftmax().double()
    x, weight = model.x.double(), model.weight.detach().double()
    delta = 1e-2 * torch.randn(weight.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before, after = x @ weight.T, x @ (weight + delta).T
    p, directional = before.softmax(-1), x @ delta.T
    slopes = directional - (p * directional).sum(-1, keepdim=True)  # ∇log p(y)·Δ for every label y
    expected = 0.5 * (p * slopes**2).sum(-1).mean()
    kl = (p * (before.log_softmax(-1) - after.log_softmax(-1))).sum(-1).mean()
    assert float(expected / kl) == pytest.approx(1, abs=0.02)
    assert float(kl_divergence(before, after).mean()) == pytest.approx(float(kl), rel=1e-2)


def test_sampled_fisher_predicts_the_kl_divergence(tmp_path):
    """What λ = 1 means: sampled diagonal Fisher and divergence agree for steps of independent sign in one matrix."""
    model = base(tmp_path / "m").eval()
    data = rows(40)
    fisher = weight_fisher(model, data, seed=0)
    before = supervised_logits(model, data)[0].detach()
    weight, name = model.model.layers[0].self_attn.v_proj.weight, "model.layers.0.self_attn.v_proj.weight"
    predicted_kl, measured_kl = [], []
    for seed in range(12):
        torch.manual_seed(seed)
        delta = 3e-3 * torch.randn_like(weight)
        predicted_kl.append(float((0.5 * fisher[name] * delta**2).sum()))
        with torch.no_grad():
            weight += delta
            measured_kl.append(float(kl_divergence(before, supervised_logits(model, data)[0]).mean()))
            weight -= delta
    assert np.mean(predicted_kl) / np.mean(measured_kl) == pytest.approx(1, abs=0.25)


def test_labels_are_sampled_from_the_predictions():
    logits = torch.tensor([[0.0, 1.0, -2.0, 3.0, -40.0]]).repeat(40_000, 1)
    gradient = sampled_gradient(logits, torch.rand(len(logits), 1, generator=torch.Generator().manual_seed(0)))
    predicted = logits[0].softmax(-1)
    drawn = (predicted - gradient).mean(0)  # how often each was the label
    error = (predicted * (1 - predicted) / len(logits)).sqrt()
    assert ((drawn - predicted).abs() <= 4 * error + 1e-6).all()
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(len(logits)), rtol=0, atol=1e-5)


def test_the_micro_batch_does_not_change_the_fisher(tmp_path, monkeypatch):
    data = rows(6)
    results = []
    for size in (1, 6):
        monkeypatch.setattr("pipelines.forgetting.fisher_information.MICRO_BATCH", size)
        model = lora(tmp_path / "m")
        results.append(lora_fisher(model, data, seed=0))
    assert results[0].keys() == {pair.module for pair in lora_pairs(model)}
    for name, factors in results[0].items():
        torch.testing.assert_close(factors.output, results[1][name].output, rtol=1e-4, atol=1e-10)
        torch.testing.assert_close(factors.input, results[1][name].input, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize("kronecker", [False, True])
def test_factors_are_the_moments_of_inputs_and_gradients(tmp_path, kronecker):
    model, data = lora(tmp_path / "m"), rows(3)
    fisher = lora_fisher(model, data, seed=5, kronecker=kronecker)
    plain = base(tmp_path / "m").eval()
    module = plain.model.layers[1].mlp.down_proj
    kept = {}
    module.register_forward_hook(
        lambda _, inputs, output: (kept.update(x=inputs[0][0].detach()), output.retain_grad(), kept.update(y=output))[0]
    )
    generator = torch.Generator().manual_seed(5)
    logits, _ = supervised_logits(plain, data)
    drawn = torch.rand(len(logits), 1, generator=generator).double()
    labels = (logits.detach().double().softmax(-1).cumsum(-1) <= drawn).sum(-1)
    F.cross_entropy(logits, labels, reduction="sum").backward()
    x, g = kept["x"], kept["y"].grad[0]
    inputs, outputs = (x.T @ x, g.T @ g) if kronecker else (x.square().sum(0), g.square().sum(0))
    factors = fisher["model.layers.1.mlp.down_proj"]
    torch.testing.assert_close(factors.output, outputs / data.num_supervised_tokens, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(factors.input, inputs / data.num_tokens, rtol=1e-4, atol=1e-8)


class OneOf(ProcessGroup):
    """A process whose sums stay its own."""

    def all_reduce_sum(self, tensors):
        pass


@pytest.mark.parametrize("world_size", [2, 8])  # 8 processes for 6 sequences: two have none
def test_the_parts_of_all_processes_are_the_whole(tmp_path, world_size):
    data, groups = rows(6), [OneOf(rank, world_size) for rank in range(world_size)]
    model = lora(tmp_path / "m")
    for kronecker in (False, True):
        whole = lora_fisher(model, data, seed=3, kronecker=kronecker)
        parts = [lora_fisher(model, data, 3, group, kronecker=kronecker) for group in groups]
        for name, factors in whole.items():
            for side in ("output", "input"):
                summed = sum(getattr(part[name], side) for part in parts)
                torch.testing.assert_close(summed, getattr(factors, side), rtol=1e-4, atol=1e-10)
    plain = base(tmp_path / "m")
    whole = weight_fisher(plain, data, seed=3)
    parts = [weight_fisher(plain, data, 3, group) for group in groups]
    for name, fisher in whole.items():
        torch.testing.assert_close(sum(part[name] for part in parts), fisher, rtol=1e-4, atol=1e-10)


def test_a_dummy_batch_of_a_process_in_lockstep_does_not_count(tmp_path):
    class Longer(OneOf):
        def lockstep_batches(self, batches, dummy_batch):
            yield from ((batch, True) for batch in batches)
            yield from [(dummy_batch, False)] * 2

    model, data = lora(tmp_path / "m"), rows(5)
    whole = lora_fisher(model, data, seed=3)
    padded = lora_fisher(model, data, 3, Longer(lockstep=True))
    for name, factors in whole.items():
        torch.testing.assert_close(padded[name].output, factors.output, rtol=1e-4, atol=1e-10)
        torch.testing.assert_close(padded[name].input, factors.input, rtol=1e-4, atol=1e-10)


def test_measuring_changes_neither_model_nor_rng(tmp_path):
    model = lora(tmp_path / "m").train()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    state = torch.get_rng_state()
    lora_fisher(model, rows(2), seed=0)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert all(weight.grad is None and torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_a_shared_prefix_counts_in_every_sequence(tmp_path, monkeypatch):
    model = lora(tmp_path / "m", moved=True)
    rng = np.random.default_rng(0)
    prefix = rng.integers(5, 200, 10)
    rows = TokenSequences.supervised_from(
        [np.concatenate([prefix, rng.integers(5, 200, 3)]).astype(np.int32) for _ in range(3)], [10] * 3
    )
    packed = lora_fisher(model, rows, seed=0)
    monkeypatch.setattr("pipelines.forgetting.fisher_information.MICRO_BATCH", 1)
    for name, single in lora_fisher(model, rows, seed=0).items():
        torch.testing.assert_close(packed[name].output, single.output)
        torch.testing.assert_close(packed[name].input, single.input)
