"""The base and the tuned model of a finished run in one process."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from pipelines.checks.hardware import configure_hardware
from pipelines.config.job import Job
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import RunError
from pipelines.evaluation.completions import LoadedModel
from pipelines.forgetting.continual import existing_starting_model
from pipelines.inference.prompts import PromptBuilder
from pipelines.registry import lazy_import
from pipelines.storage.run_folder import Run

if TYPE_CHECKING:
    from pipelines.modeling import adapters, equivalence, packed_weights, packing
else:  # torch: 3 s that an error in the run's folder does not need
    adapters, equivalence, packed_weights, packing = (
        lazy_import(f"pipelines.modeling.{name}") for name in ("adapters", "equivalence", "packed_weights", "packing")
    )

ModelName = Literal["base", "tuned"]
MODEL_NAMES: tuple[ModelName, ...] = get_args(ModelName)


@dataclass
class RunFormat:
    """How the two models of a run are prompted, and how their tokens are decoded, without the models.

    Attributes:
        prompt_format: decodes completions; that of base and tuned.
        prompts: builds the prompts of both models. It has a tokenizer of its own: a tokenizer that encodes in one
            thread must not be used in another.
    """

    run: Run
    job: Job
    prompt_format: PromptFormat
    prompts: PromptBuilder

    @classmethod
    def load(cls, run: Run, job: Job) -> RunFormat:
        """Reads the tokenizer of the run's base. Raises ModelError as `predict` does."""
        folder, settings = existing_starting_model(job, run), job.chat_template_settings()
        decoding, encoding = (PromptFormat.from_folder(folder, settings) for _ in range(2))
        return RunFormat(run, job, decoding, PromptBuilder(job, encoding, run.manifest))


@dataclass
class RunModels(RunFormat):
    """The two models of a run.

    Attributes:
        base, tuned: with an adapter they are the same modules; use them within `active`, which switches the adapter.
        shares_weights: whether base and tuned share the base's weights.
    """

    base: LoadedModel
    tuned: LoadedModel
    shares_weights: bool
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    _packed: dict[str, packed_weights.PackedWeights] = field(default_factory=dict, repr=False)
    _enable: weakref.finalize | None = field(default=None, repr=False)
    """Switches the adapter on again, once, if it is alive."""

    @classmethod
    def load(cls, run: Run, job: Job) -> RunModels:
        """Loads both models as the run's evaluation does, with its check that the tuned one is the one that training
        exported.

        Base and tuned share the base's weights if the run has an adapter that can be switched off: not one that
        rewrites the base's weights or trains some of them. Raises ModelError and RunError as `predict` does.
        """
        configure_hardware(job)
        folder, settings = existing_starting_model(job, run), job.chat_template_settings()
        base = LoadedModel.from_folder(folder, settings, job.quantization, allow_vllm=True)
        tuned = base.with_tuned_model(run.path("model"))
        shares = tuned.has_adapter and _is_base_without_adapter(tuned)
        if tuned.has_adapter and not shares:
            vllm = base.vllm
            base = LoadedModel.from_folder(folder, settings, job.quantization)
            base.vllm = vllm
        prompts = PromptBuilder(job, PromptFormat.from_folder(folder, settings), run.manifest)
        return cls(run, job, tuned.prompt_format, prompts, base, tuned, shares)

    def select(self, name: str) -> LoadedModel:
        """The model `base` or `tuned`. Raises RunError for another name."""
        if name not in MODEL_NAMES:
            raise RunError(f"no model {name!r:.60}; the models are {' and '.join(MODEL_NAMES)}")
        return self.base if name == "base" else self.tuned

    def pack_weights(self) -> None:
        """Packs the weights of both models for inference on a CPU, where memory suffices; see `packed_weights`.

        They stay packed: the models must not be trained afterwards.
        """
        for name in MODEL_NAMES:
            with self.active(name) as loaded:
                packed = packed_weights.PackedWeights.pack(loaded.model)
            if packed is not None:
                self._packed[name] = packed

    @contextlib.contextmanager
    def active(self, name: str) -> Iterator[LoadedModel]:
        """Yields a model whose forward passes are its own within the block; other threads wait for the block's end.

        The adapter stays switched as it is until the other model is used: switching visits every layer.
        """
        loaded = self.select(name)
        with self._lock:
            if self.shares_weights:
                self._switch_adapter(is_on=loaded is self.tuned)
            packed = self._packed.get(name)
            with packed.in_use() if packed else contextlib.nullcontext():
                yield loaded

    def _switch_adapter(self, is_on: bool) -> None:
        is_disabled = self._enable is not None and self._enable.alive
        if is_on and self._enable is not None:
            self._enable()
        elif not is_on and not is_disabled:
            disabled = contextlib.ExitStack()
            disabled.enter_context(adapters.adapter_disabled(self.tuned.model))
            # Also when this object is dropped, or the program ends.
            self._enable = weakref.finalize(self, disabled.close)


def _is_base_without_adapter(tuned: LoadedModel) -> bool:
    """Whether the tuned model with its adapter switched off has the logits of the base model as it was loaded."""
    expected = adapters.model_source(tuned.model).logits
    with adapters.adapter_disabled(tuned.model):
        logits = equivalence.probe_logits(tuned.model)
    return equivalence.outputs_match(logits, expected, equivalence.is_fp32(packing.transformers_model(tuned.model)))
