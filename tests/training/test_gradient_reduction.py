"""Gradients that are summed during the backward pass are those that are summed after it."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from pipelines.modeling.process_group import ProcessGroup
from pipelines.training import gradient_reduction
from pipelines.training.gradient_reduction import GradientReduction, mark_last
from tests.two_processes import run_in_two_processes


def layers():
    torch.manual_seed(0)
    return torch.nn.ModuleList([torch.nn.Linear(6, 6, bias=False), torch.nn.Linear(6, 6), torch.nn.Linear(6, 6)])


def loss_of(model, inputs):
    for layer in model[1:]:
        inputs = layer(inputs).relu()
    return inputs.square().sum()  # the first layer is not used


def twice_by_checkpointing(model, inputs):
    """The first layer is used in two checkpointed segments, each with a backward pass of its own."""
    for layer in (model[0], model[1], model[2], model[0]):
        inputs = checkpoint(lambda values, layer=layer: layer(values).tanh(), inputs, use_reentrant=True)
    return inputs.square().sum()


def micro_batches(rank, step=0):
    generator = torch.Generator().manual_seed(10 * step + rank)
    return [torch.randn(4, 6, generator=generator, requires_grad=True) for _ in range(3)]


def reduced(rank, group, loss_function, batches_of_steps, overlapped, fail_once=False):
    """The gradients after each step, whether the sums were overlapped, and how many buckets were sent early."""
    model = layers()
    reduction = GradientReduction(group, list(model.parameters()))
    results, sent_early = [], []
    for batches in batches_of_steps:
        total = torch.zeros(())
        for attempt in range(2 if fail_once else 1):
            for batch, is_last in mark_last(batches):
                with reduction.last_backward_pass(is_last and overlapped):
                    loss = loss_function(model, batch)
                    loss.backward()
                    total = total + loss.detach()
            sent_early.append(len(reduction._sent))
            if fail_once and attempt == 0:
                model.zero_grad()
                total = torch.zeros(())
                reduction.restart()
        reduction.finish(total)
        results.append([total, *(weight.grad.clone() for weight in model.parameters())])
        model.zero_grad()
    return results, reduction.is_overlapped, sent_early


def all_cases(folder):
    gradient_reduction.BUCKET_BYTES = 100  # a bucket for each matrix
    group = ProcessGroup.current()
    rank, results = group.rank, {}
    steps = [micro_batches(rank, step) for step in range(2)]
    cases = {
        "each process has rows": (loss_of, steps, False),
        "one process has no rows": (loss_of, steps if rank == 0 else [[], []], False),
        "one process computes its gradients again": (loss_of, steps, rank == 1),
        "gradients in several backward passes": (twice_by_checkpointing, steps, False),
    }
    for name, (loss_function, batches, fail_once) in cases.items():
        expected, _, sent_at_the_end = reduced(rank, group, loss_function, batches, overlapped=False)
        actual, is_overlapped, sent_early = reduced(rank, group, loss_function, batches, True, fail_once)
        results[name] = (actual, expected, is_overlapped, sent_early, sent_at_the_end)
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_in_two_processes(all_cases, tmp_path_factory.mktemp("reduction"))


CASES = ["each process has rows", "one process has no rows", "one process computes its gradients again"]


@pytest.mark.parametrize("case", [*CASES, "gradients in several backward passes"])
def test_overlapped_sums_are_bitwise_those_after_the_backward_pass(results, case):
    for rank, result in enumerate(results):
        actual, expected, is_overlapped, sent_early, sent_at_the_end = result[case]
        for step, expected_step in zip(actual, expected, strict=True):
            for gradient, expected_gradient in zip(step, expected_step, strict=True):
                assert torch.equal(gradient, expected_gradient)
        assert is_overlapped == (case in CASES) and not any(sent_at_the_end)
        if case == CASES[0]:
            assert sent_early == [2, 2]  # the third bucket has the weight that is not used
        if case == CASES[2]:
            assert sent_early == ([2, 2, 2, 2] if rank else [2, 2])


def test_gradients_are_summed_over_both_processes(results):
    both = [[loss_of(model := layers(), batch) for batch in micro_batches(rank)] for rank in range(2)]
    assert model is not None
    actual = results[0]["each process has rows"][0][0][0]
    torch.testing.assert_close(actual, sum(loss.detach() for losses in both for loss in losses))


def test_a_single_process_has_no_hooks():
    weights = list(layers().parameters())
    reduction = GradientReduction(ProcessGroup(), weights)
    with reduction.last_backward_pass():
        sum(weight.sum() for weight in weights).backward()
    reduction.finish()
    assert not reduction._hooks and all((weight.grad == 1).all() for weight in weights)


def test_the_last_item_is_marked():
    assert list(mark_last("abc")) == [("a", False), ("b", False), ("c", True)]
    assert list(mark_last([])) == []
