"""The Fisher information of a model on text: how much its predictions depend on each weight.

With labels sampled from the model, averaged per predicted token, ½ ΔᵀFΔ is the divergence KL(before ‖ after) of a
small change Δ, in nats per token. Squaring the gradient of a batch instead of a sequence, or taking the labels of the
text, would give another quantity. (Kunstner et al. 2019, arXiv:1905.12558.)

On a GPU the passes run in the half precision of the training, which costs less than the sampling error of the labels;
sums are in fp32. The gradients are those of sums over tokens, not of means, so that in fp16 they need no scaling.

Processes that train together measure on a shard each. The labels do not depend on their number: each supervised token
has a random number of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from pipelines.console.activity import track_activity
from pipelines.forgetting.penalty import FactoredImportance, LoraPair, lora_pairs
from pipelines.modeling.adapters import adapter_disabled, trainable_parameters
from pipelines.modeling.memory import halve_until_it_fits, longest_sequence, machine_error_on_out_of_memory
from pipelines.modeling.mixed_precision import autocast
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.process_group import SINGLE_PROCESS, ProcessGroup
from pipelines.modeling.token_sequences import TokenSequences

MICRO_BATCH = 8
LOCKSTEP_MICRO_BATCH = 2
"""If the base is sharded. A process that runs out of memory cannot try again there, since the others wait for it."""
ACTIVITY = "the Fisher information of general text and earlier tasks"
"""The text beside the progress bar."""


def sampled_gradient(logits: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Returns the gradient of the summed cross entropy to labels sampled from `logits` [tokens, vocabulary].

    The gradient is with respect to `logits`, in their shape and dtype: the predicted probabilities, minus one at the
    label. `uniform` [tokens, 1] has random numbers in [0, 1), each of which draws a label.
    """
    probabilities = logits.detach().float().softmax(dim=-1)
    # torch.multinomial would draw one random number per entry of the vocabulary.
    cumulative = probabilities.cumsum(dim=-1)
    drawn = uniform.to(logits.device) * cumulative[:, -1:]
    labels = torch.searchsorted(cumulative, drawn, right=True).clamp(max=logits.shape[-1] - 1)
    return probabilities.scatter_add_(1, labels, torch.full_like(drawn, -1)).to(logits.dtype)


_Batch = tuple[TokenSequences, torch.Tensor]
"""Sequences, and the random numbers [supervised tokens, 1] that draw their labels."""


class _Shard:
    """The sequences of this process. Each supervised token has the random number that it has in a single process."""

    def __init__(self, sequences: TokenSequences, seed: int, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(sequences.num_supervised_tokens, 1, generator=generator)
        indices = process_group.shard_indices(sequences)
        self.sequences = sequences.select(indices)
        by_sequence = uniform.split(sequences.supervised_lengths)
        self._uniform = [by_sequence[index] for index in indices]

    def batch(self, start: int, size: int) -> _Batch:
        """`size` sequences from `start` on, or fewer at the end."""
        end = start + size
        return self.sequences[start:end], torch.cat(self._uniform[start:end])

    def batches(self, size: int) -> Iterator[_Batch]:
        """All sequences, `size` at a time."""
        return (self.batch(start, size) for start in range(0, len(self.sequences), size))


def lora_fisher(
    model: torch.nn.Module,
    sequences: TokenSequences,
    seed: int,
    process_group: ProcessGroup = SINGLE_PROCESS,
    *,
    kronecker: bool = False,
) -> dict[str, FactoredImportance]:
    """Returns the Fisher information of every adapted matrix, by module, in two factors.

    F_ij ≈ E[g_i²]·E[x_j²], or with `kronecker` E[g gᵀ] ⊗ E[x xᵀ], with x a token's input to the matrix and g the
    gradient of the summed loss with respect to its output. Packed sequences do not attend to each other, so packing
    changes nothing; a shared prefix is computed in every sequence, since it has another gradient in each. Measured with
    the adapter disabled: at the model that the job starts from, and without gradients of the adapter's matrices.
    If memory runs out, it starts over with half the rows in a pass, unless the base is sharded. Raises MachineError if
    one row does not fit.
    """
    shard = _Shard(sequences, seed, process_group)
    pairs = list(lora_pairs(model))

    def measure(micro_batch: int) -> _Moments:
        batches = process_group.lockstep_batches(shard.batches(micro_batch), _Shard(sequences[0:1], seed).batch(0, 1))
        return _measure_moments(model, pairs, batches, kronecker, len(shard.sequences))

    work = "the measurement of the Fisher information"
    if process_group.lockstep:
        with machine_error_on_out_of_memory(work):
            moments = measure(LOCKSTEP_MICRO_BATCH)
    else:
        moments = halve_until_it_fits(measure, MICRO_BATCH, shard.sequences, work)
    moments.sum_over(process_group)
    num_supervised, num_tokens = sequences.num_supervised_tokens, sequences.num_tokens
    # In place: Kronecker factors take more memory than the model.
    return {
        name: FactoredImportance(output.div_(num_supervised), moments.inputs[name].div_(num_tokens))
        for name, output in moments.outputs.items()
    }


def _measure_moments(
    model: torch.nn.Module,
    pairs: Sequence[LoraPair],
    batches: Iterable[tuple[_Batch, bool]],
    kronecker: bool,
    num_sequences: int,
) -> _Moments:
    """The moments of the batches with True. A batch with False is computed only because other processes wait for it."""
    device = next(model.parameters()).device
    moments = _Moments(pairs, kronecker, device)
    with (
        _eval_mode(model),
        _without_adapter(model),
        moments.recorded(model),
        track_activity(ACTIVITY, num_sequences) as activity,
    ):
        for (sequences, uniform), is_recorded in batches:
            moments.is_recording = is_recorded
            with autocast(device):
                logits, _ = supervised_logits(model, sequences, share_prefixes=False)
            logits.backward(sampled_gradient(logits, uniform))
            activity.advance(len(sequences) if is_recorded else 0)
    return moments


@contextlib.contextmanager
def _without_adapter(model: torch.nn.Module) -> Iterator[None]:
    """Disables the adapter. Gradients flow from the token embeddings, since no weight requires one."""

    def require_grad(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.requires_grad_(True)

    hook = model.get_input_embeddings().register_forward_hook(require_grad)  # type: ignore[operator]
    try:
        with adapter_disabled(model):
            yield
    finally:
        hook.remove()


class _Moments:
    """Sums of x² and g² over tokens (or of the outer products), by module, recorded by hooks."""

    def __init__(self, pairs: Sequence[LoraPair], kronecker: bool, device: torch.device) -> None:
        def zeros(size: int) -> torch.Tensor:
            return torch.zeros((size, size) if kronecker else size, device=device)

        self.kronecker = kronecker
        self.inputs = {pair.module: zeros(pair.lora_A.shape[1]) for pair in pairs}
        self.outputs = {pair.module: zeros(pair.lora_B.shape[0]) for pair in pairs}
        self.is_recording = True

    def sum_over(self, process_group: ProcessGroup) -> None:
        """Replaces the sums by those over all processes."""
        process_group.all_reduce_sum([*self.inputs.values(), *self.outputs.values()])

    @contextlib.contextmanager
    def recorded(self, model: torch.nn.Module) -> Iterator[None]:
        hooks = []
        for full_name, module in model.named_modules():
            name = full_name.removeprefix("base_model.model.")
            if name in self.inputs:
                hooks.append(module.register_forward_hook(self._forward_hook(name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _forward_hook(self, name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if not self.is_recording:
                return
            self._add(self.inputs, name, inputs[0].detach())
            output.register_hook(lambda gradient: self._add(self.outputs, name, gradient))

        return hook

    def _add(self, sums: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
        flat = values.float().reshape(-1, values.shape[-1])
        with torch.autocast(values.device.type, enabled=False):
            moment = flat.T @ flat if self.kronecker else flat.square().sum(dim=0)
        sums[name] += moment


def weight_fisher(
    model: torch.nn.Module, sequences: TokenSequences, seed: int, process_group: ProcessGroup = SINGLE_PROCESS
) -> dict[str, torch.Tensor]:
    """Returns the diagonal Fisher information of every trained weight, in its shape: one backward pass per sequence.

    Raises MachineError if memory does not suffice for that.
    """
    with machine_error_on_out_of_memory(f"the Fisher information, with a row of {longest_sequence(sequences)} tokens"):
        return _weight_fisher(model, sequences, _Shard(sequences, seed, process_group), process_group)


def _weight_fisher(
    model: torch.nn.Module, sequences: TokenSequences, shard: _Shard, process_group: ProcessGroup
) -> dict[str, torch.Tensor]:
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    weights = trainable_parameters(model)
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    with _eval_mode(model), track_activity(ACTIVITY, len(shard.sequences)) as activity:
        for sequence, uniform in shard.batches(1):
            with autocast(weights[0].device):
                logits, _ = supervised_logits(model, sequence)
            gradients = torch.autograd.grad(logits, weights, sampled_gradient(logits, uniform))
            for total, gradient in zip(sums, gradients, strict=True):
                total.addcmul_(gradient.float(), gradient.float())
            del gradients, gradient, logits  # before the next gradients, which are as large as the model
            activity.advance(1)
    process_group.all_reduce_sum(sums)
    return {name: total.div_(sequences.num_supervised_tokens) for name, total in zip(names, sums, strict=True)}


@contextlib.contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
