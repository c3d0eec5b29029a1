"""The Fisher information of a model on text: how much its predictions depend on each weight.

With labels sampled from the model, averaged per predicted token, ½ ΔᵀFΔ is the divergence KL(before ‖ after) of a
small change Δ, in nats per token. Squaring the gradient of a batch instead of a sequence, or taking the labels of the
text, would give another quantity. (Kunstner et al. 2019, arXiv:1905.12558.)

On a GPU the passes run in the half precision of the training, which costs less than the sampling error of the labels;
sums are in fp32. The gradients are those of sums over tokens, not of means, so that in fp16 they need no scaling.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from pipelines.console.activity import track_activity
from pipelines.forgetting.penalty import FactoredImportance, lora_pairs
from pipelines.modeling.adapters import adapter_disabled, trainable_parameters
from pipelines.modeling.memory import halve_until_it_fits, longest_sequence, machine_error_on_out_of_memory
from pipelines.modeling.mixed_precision import autocast
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.token_sequences import TokenSequences, micro_batches

MICRO_BATCH = 8
ACTIVITY = "the Fisher information of general text and earlier tasks"
"""The text beside the progress bar."""


def sampled_gradient(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns the gradient of the summed cross entropy to labels sampled from `logits` [tokens, vocabulary].

    The gradient is with respect to `logits`, in their shape and dtype: the predicted probabilities, minus one at the
    label.
    """
    probabilities = logits.detach().float().softmax(dim=-1)
    # torch.multinomial would draw one random number per entry of the vocabulary.
    cumulative = probabilities.cumsum(dim=-1)
    drawn = torch.rand(len(logits), 1, generator=generator).to(logits.device) * cumulative[:, -1:]
    labels = torch.searchsorted(cumulative, drawn, right=True).clamp(max=logits.shape[-1] - 1)
    return probabilities.scatter_add_(1, labels, torch.full_like(drawn, -1)).to(logits.dtype)


def lora_fisher(
    model: torch.nn.Module, sequences: TokenSequences, seed: int, *, kronecker: bool = False
) -> dict[str, FactoredImportance]:
    """Returns the Fisher information of every adapted matrix, by module, in two factors.

    F_ij ≈ E[g_i²]·E[x_j²], or with `kronecker` E[g gᵀ] ⊗ E[x xᵀ], with x a token's input to the matrix and g the
    gradient of the summed loss with respect to its output. Packed sequences do not attend to each other, so packing
    changes nothing; a shared prefix is computed in every sequence, since it has another gradient in each. Measured with
    the adapter disabled: at the model that the job starts from, and without gradients of the adapter's matrices.
    If memory runs out, it starts over with half the rows in a pass. Raises MachineError if one row does not fit.
    """

    def measure(micro_batch: int) -> dict[str, FactoredImportance]:
        return _lora_fisher(model, sequences, seed, kronecker, micro_batch)

    return halve_until_it_fits(measure, MICRO_BATCH, sequences, "the measurement of the Fisher information")


def _lora_fisher(
    model: torch.nn.Module, sequences: TokenSequences, seed: int, kronecker: bool, micro_batch: int
) -> dict[str, FactoredImportance]:
    """`lora_fisher` with `micro_batch` sequences in a pass."""
    pairs = {pair.module: pair for pair in lora_pairs(model)}
    moments, device = _Moments(kronecker), next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    with (
        _eval_mode(model),
        _without_adapter(model),
        moments.recorded(model, set(pairs)),
        track_activity(ACTIVITY, len(sequences)) as activity,
    ):
        for batch in micro_batches(sequences, micro_batch):
            with autocast(device):
                logits, _ = supervised_logits(model, batch, share_prefixes=False)
            logits.backward(sampled_gradient(logits, generator))
            activity.advance(len(batch))
    num_supervised, num_tokens = sequences.num_supervised_tokens, sequences.num_tokens
    # In place: Kronecker factors take more memory than the model.
    return {
        name: FactoredImportance(moments.outputs[name].div_(num_supervised), moments.inputs[name].div_(num_tokens))
        for name in pairs
    }


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

    def __init__(self, kronecker: bool) -> None:
        self.kronecker = kronecker
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}

    @contextlib.contextmanager
    def recorded(self, model: torch.nn.Module, module_names: set[str]) -> Iterator[None]:
        hooks = []
        for full_name, module in model.named_modules():
            name = full_name.removeprefix("base_model.model.")
            if name in module_names:
                hooks.append(module.register_forward_hook(self._forward_hook(name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _forward_hook(self, name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._add(self.inputs, name, inputs[0].detach())
            output.register_hook(lambda gradient: self._add(self.outputs, name, gradient))

        return hook

    def _add(self, sums: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
        flat = values.float().reshape(-1, values.shape[-1])
        with torch.autocast(values.device.type, enabled=False):
            moment = flat.T @ flat if self.kronecker else flat.square().sum(dim=0)
        if name in sums:
            sums[name] += moment
        else:
            sums[name] = moment


def weight_fisher(model: torch.nn.Module, sequences: TokenSequences, seed: int) -> dict[str, torch.Tensor]:
    """Returns the diagonal Fisher information of every trained weight, in its shape: one backward pass per sequence.

    Raises MachineError if memory does not suffice for that.
    """
    with machine_error_on_out_of_memory(f"the Fisher information, with a row of {longest_sequence(sequences)} tokens"):
        return _weight_fisher(model, sequences, seed)


def _weight_fisher(model: torch.nn.Module, sequences: TokenSequences, seed: int) -> dict[str, torch.Tensor]:
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    weights = trainable_parameters(model)
    sums = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    with _eval_mode(model), track_activity(ACTIVITY, len(sequences)) as activity:
        for index in range(len(sequences)):
            with autocast(weights[0].device):
                logits, _ = supervised_logits(model, sequences[index : index + 1])
            gradients = torch.autograd.grad(logits, weights, sampled_gradient(logits, generator))
            for total, gradient in zip(sums, gradients, strict=True):
                total.addcmul_(gradient.float(), gradient.float())
            del gradients, gradient, logits  # before the next gradients, which are as large as the model
            activity.advance(1)
    return {name: total.div_(sequences.num_supervised_tokens) for name, total in zip(names, sums, strict=True)}


@contextlib.contextmanager
def _eval_mode(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
