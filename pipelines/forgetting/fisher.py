"""The Fisher information of a model on text: which weights its predictions depend on.

With the labels sampled from the model, and averaged per predicted token, ½ Δᵀ F Δ is the divergence KL(before ‖ after) of
a small move Δ, in nats per token. Squaring the gradient of a batch instead of a sequence, or taking the text's own labels,
would give another quantity. (Kunstner et al. 2019, arXiv:1905.12558.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from pipelines.console.activity import doing
from pipelines.forgetting.penalty import KroneckerFactors, lora_pairs
from pipelines.modeling.adapters import adapter_disabled, trained_weights
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.token_sequences import TokenSequences, micro_batches

MICRO_BATCH = 8
WHAT = "the Fisher information of what is to be kept"
"""What a person reads while it is measured."""


def sampled_gradient(logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The gradient by `logits` [tokens, vocabulary] of the summed loss of labels drawn from what they predict: what is
    predicted, less one at the label."""
    predicted = logits.detach().float().softmax(dim=-1)
    # torch.multinomial would draw a random number for every word of the vocabulary.
    reached = predicted.cumsum(dim=-1)
    drawn = torch.rand(len(logits), 1, generator=generator).to(logits.device) * reached[:, -1:]
    labels = torch.searchsorted(reached, drawn, right=True).clamp(max=logits.shape[-1] - 1)
    return predicted.scatter_add_(1, labels, torch.full_like(drawn, -1)).to(logits.dtype)


def lora_fisher(
    model: torch.nn.Module, rows: TokenSequences, seed: int, *, kronecker: bool = False
) -> dict[str, KroneckerFactors]:
    """Fisher information of every adapted matrix, by module, in two factors.

    F_ij ≈ E[g_i²]·E[x_j²], or with `kronecker` E[g gᵀ] ⊗ E[x xᵀ], with x a token's input of the matrix and g the gradient of
    the summed loss by its output. Rows do not see each other, so packing them changes nothing; what they begin with is
    read in each, since it has another gradient there.
    Measured with the adapter switched off: of the model that the job starts from, and without the adapter's own products.
    """
    pairs = {pair.module: pair for pair in lora_pairs(model)}
    sums = _Sums(kronecker)
    generator = torch.Generator().manual_seed(seed)
    with (
        _evaluating(model),
        _without_adapter(model),
        sums.watching(model, set(pairs)),
        doing(WHAT, len(rows)) as activity,
    ):
        for part in micro_batches(rows, MICRO_BATCH):
            logits, _ = supervised_logits(model, part, share_prefixes=False)
            logits.backward(sampled_gradient(logits, generator))
            activity.advance(len(part))
    predicted, seen = rows.supervised_tokens, rows.tokens
    return {name: KroneckerFactors(sums.outputs[name] / predicted, sums.inputs[name] / seen) for name in pairs}


@contextlib.contextmanager
def _without_adapter(model: torch.nn.Module) -> Iterator[None]:
    """Gradients still flow: not from a weight, from what the tokens' embeddings give."""

    def begin(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        output.requires_grad_(True)

    hook = model.get_input_embeddings().register_forward_hook(begin)  # type: ignore[operator]
    try:
        with adapter_disabled(model):
            yield
    finally:
        hook.remove()


class _Sums:
    """Sums over tokens of x², g² (or of their outer products), gathered by hooks."""

    def __init__(self, kronecker: bool) -> None:
        self.kronecker = kronecker
        self.inputs: dict[str, torch.Tensor] = {}
        self.outputs: dict[str, torch.Tensor] = {}

    @contextlib.contextmanager
    def watching(self, model: torch.nn.Module, modules: set[str]) -> Iterator[None]:
        hooks = []
        for full_name, module in model.named_modules():
            name = full_name.removeprefix("base_model.model.")
            if name in modules:
                hooks.append(module.register_forward_hook(self._hook(name)))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str):  # type: ignore[no-untyped-def]  # torch's own signature for hooks
        def forward(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self._add(self.inputs, name, inputs[0].detach())
            output.register_hook(lambda gradient: self._add(self.outputs, name, gradient))

        return forward

    def _add(self, sums: dict[str, torch.Tensor], name: str, values: torch.Tensor) -> None:
        flat = values.float().reshape(-1, values.shape[-1])
        part = flat.T @ flat if self.kronecker else flat.square().sum(dim=0)
        sums[name] = sums[name] + part if name in sums else part


def weight_fisher(model: torch.nn.Module, rows: TokenSequences, seed: int) -> dict[str, torch.Tensor]:
    """The diagonal Fisher information of every trained weight, in its shape: one backward a sequence."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad]
    weights = trained_weights(model)
    sums = [torch.zeros_like(weight) for weight in weights]
    generator = torch.Generator().manual_seed(seed)
    with _evaluating(model), doing(WHAT, len(rows)) as activity:
        for number in range(len(rows)):
            logits, _ = supervised_logits(model, rows[number : number + 1])
            gradients = torch.autograd.grad(logits, weights, sampled_gradient(logits, generator))
            for total, gradient in zip(sums, gradients, strict=True):
                total.addcmul_(gradient, gradient)
            activity.advance(1)
    return {name: total / rows.supervised_tokens for name, total in zip(names, sums, strict=True)}


@contextlib.contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
