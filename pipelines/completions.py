"""One function for base and tuned: prompts in, completions out. The model alone differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config import Job
from pipelines.errors import RunError
from pipelines.prompts import PromptFormat

if TYPE_CHECKING:
    import torch

    from pipelines.engine.packing import Rows

BATCH_ROWS = 64
"""Prompts answered together; sorted by length first, so that little is padding."""

Progress = Callable[[int], None]
"""Called with the number of rows just finished."""


@dataclass(frozen=True)
class Completion:
    text: str
    new_tokens: int
    finished: bool
    """False where it was cut at max_new_tokens."""


class LoadedModel:
    """A model for completions: the base and, attached over the same weights, the tuned one."""

    def __init__(self, model: torch.nn.Module, prompts: PromptFormat) -> None:
        self.model = model.eval()
        self.prompts = prompts

    @classmethod
    def base(cls, folder: Path, chat_template: bool | None, quantization: Any = None) -> LoadedModel:
        from pipelines.engine.model import load_causal_lm

        model = load_causal_lm(folder, frozen=True, quantization=quantization)
        return cls(model, PromptFormat.of_folder(folder, chat_template))

    def logits(self, rows: Rows) -> torch.Tensor:
        """What it predicts at the supervised tokens of `rows`: [rows.supervised_tokens, vocabulary]."""
        import torch

        from pipelines.engine.packing import supervised_logits

        with torch.no_grad():
            return supervised_logits(self.model, rows)[0]

    @property
    def has_adapter(self) -> bool:
        from peft import PeftModel

        return isinstance(self.model, PeftModel)

    def attach(self, tuned: Path) -> LoadedModel:
        """The tuned model in `tuned`: its adapter over these weights, or its own full weights."""
        from pipelines.engine.model import load_causal_lm

        if not (tuned / "adapter_config.json").exists():
            return LoadedModel(load_causal_lm(tuned, frozen=True), self.prompts)
        from peft import PeftModel

        if self.has_adapter:
            raise RunError("an adapter is attached already")
        return LoadedModel(PeftModel.from_pretrained(self.model, tuned), self.prompts)


def quantization_of(job: Job) -> Any:
    """Ludwig's quantization settings, None without: the same for both passes, for training and for `predict`."""
    settings = job.ludwig.get("quantization")
    if not settings:
        return None
    from ludwig.schema.llms.quantization import QuantizationConfig

    return QuantizationConfig.model_validate(settings)


def complete(
    loaded: LoadedModel,
    prompts: Sequence[list[int]],
    generation: dict[str, Any],
    max_new_tokens: Sequence[int],
    progress: Progress = lambda rows: None,
) -> list[Completion]:
    """A completion for each tokenised prompt, in the order given.

    `generation` holds transformers' generation settings; `max_new_tokens` is per prompt. Rows are batched with
    rows of the same bound and about the same length.
    """
    order = sorted(range(len(prompts)), key=lambda n: (max_new_tokens[n], len(prompts[n]), n))
    answers: dict[int, Completion] = {}
    while order:
        batch = [n for n in order[:BATCH_ROWS] if max_new_tokens[n] == max_new_tokens[order[0]]]
        order = order[len(batch) :]
        rows = _generate(loaded, [prompts[n] for n in batch], {**generation, "max_new_tokens": max_new_tokens[batch[0]]})
        answers.update(zip(batch, rows, strict=True))
        progress(len(batch))
    return [answers[n] for n in range(len(prompts))]


def _generate(loaded: LoadedModel, prompts: list[list[int]], generation: dict[str, Any]) -> list[Completion]:
    import torch
    from transformers import GenerationConfig

    stops = loaded.prompts.stop_ids
    width = max(len(ids) for ids in prompts)
    device = next(loaded.model.parameters()).device
    # Padding stands on the left and is masked out, so any token will do.
    ids = torch.tensor([[stops[0]] * (width - len(row)) + row for row in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device)
    config = GenerationConfig(
        **{key: value for key, value in generation.items() if value is not None},
        eos_token_id=stops,
        pad_token_id=stops[0],
    )
    with torch.inference_mode():
        output = loaded.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)  # type: ignore[operator]
    return [_cut(loaded.prompts, row[width:].tolist()) for row in output]


def _cut(prompts: PromptFormat, tokens: list[int]) -> Completion:
    """The text before the first stop token."""
    end = next((place for place, token in enumerate(tokens) if token in prompts.stop_ids), None)
    kept = tokens if end is None else tokens[:end]
    text = prompts.tokenizer.decode(kept, skip_special_tokens=True)
    return Completion(str(text), len(kept) + (end is not None), end is not None)


def reference_losses(loaded: LoadedModel, rows: Sequence[dict[str, Any]], progress: Progress = lambda rows: None) -> list[float]:
    """The loss of each row's reference and its end token, in nats per token. Rows hold input_ids, supervised_from."""
    import numpy as np

    from pipelines.engine.packing import Rows, row_losses

    packed = Rows([np.asarray(row["input_ids"]) for row in rows], [row["supervised_from"] for row in rows])
    losses = []
    for loss in row_losses(loaded.model, packed):
        losses.append(loss)
        progress(1)
    return losses
