"""Completions by vLLM, for many or long ones on a GPU: in a process of its own, with the same prompts token by token.

Before it answers, vLLM is tried on some of the prompts: log-probabilities and greedy answers must be those of the model
in this process, up to rounding. References are scored by the model in this process.
"""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from pipelines.config.generation import is_greedy
from pipelines.config.optional_packages import vllm_version
from pipelines.console.activity import track_activity
from pipelines.errors import MachineError, RunError
from pipelines.evaluation.engine_process import EngineProcess
from pipelines.evaluation.generation import supports_packed_prefill
from pipelines.modeling.equivalence import is_fp32
from pipelines.modeling.hardware import current_hardware, empty_cache
from pipelines.modeling.memory import OutOfMemory, attempt
from pipelines.modeling.model_folder import read_json
from pipelines.modeling.packing import sequence_mean_losses, supervised_logits
from pipelines.modeling.token_sequences import TokenSequences

PROGRAM = Path(__file__).parent / "engines" / "vllm_engine.py"
MIN_TOKENS = 1_000_000
"""Tokens of completions from which on vLLM is used of itself. It takes about a minute to start; on an H100, in the same
time alfine generates about 650,000 tokens with a model of 1.5B (docs/gpu/h100_2026-11-26.md: 5.9 ms per 64)."""
MIN_TOKENS_GENERATE = 100_000
"""The same for models that only transformers' `generate` decodes, about a tenth as fast on that H100."""
MEMORY_FRACTION = 0.7
"""The part of the GPU's free memory that vLLM may take: weights, cache and activations. In the rest the model in this
process is compared with it, and scores references."""
CPU_CACHE_BYTES = 4 * 2**30
"""The most main memory for keys and values on a CPU."""
MIN_LENGTH = 4096
"""Tokens of a prompt with its completion that vLLM is started for, within the model's context. For longer ones it is
started again."""
LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM allows for the largest rank."""
NEUTRAL_LORA_OPTIONS: dict[str, Any] = {
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
}
"""Options of PEFT that vLLM refuses or ignores, with the values that have no effect."""
REWRITING_INITS = ("pissa", "olora")
"""Values of `init_lora_weights` that subtract the adapter's initial product from the base's weights."""

TRIAL_PROMPTS = 8
TRIAL_TOKENS = 16
"""Tokens of each trial answer."""
TRIAL_TEMPERATURE = 1.5


@dataclass(frozen=True)
class Tolerance:
    """Differences in nats: measured ones, or what rounding may make.

    Attributes:
        mean_error: the mean difference of log-probabilities.
        tie: two tokens whose log-probabilities differ by less may both be the greedy choice.
    """

    mean_error: float
    tie: float


FP32 = Tolerance(mean_error=1e-3, tie=1e-3)
HALF = Tolerance(mean_error=0.15, tie=0.5)
"""`tests.benchmarks.vllm_agreement` on SmolLM2-135M with a trained LoRA: mean errors of up to 8e-6 nats in fp32, and of
0.06 in bf16; 1.0 without the adapter. A scaling that is a fifth larger makes 0.05 to 0.1, which fp32 tells apart."""

DTYPE_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}


class VllmNotUsed(Exception):
    """vLLM does not give the completions of a model; alfine generates them itself."""


_running: weakref.WeakSet[VllmModel] = weakref.WeakSet()
"""Those of this process that have started vLLM."""


class VllmModel:
    """A base model in vLLM, with its adapters. The process starts with the first completions.

    Attributes:
        problem: why vLLM cannot answer for this model; None as far as is known.
    """

    def __init__(self, folder: Path, quantization: Mapping[str, Any] | None) -> None:
        self.folder = folder.absolute()
        self.problem = "the base is quantized" if quantization is not None else None
        self.description = "vLLM"
        """Name and version, once it has started."""
        self.ranks: dict[str, int] = {}
        self._process: EngineProcess | None = None
        self._close_process: weakref.finalize | None = None
        """Closes the process, once, also if this object is dropped or the program ends."""
        self._length = 0
        self._tried: set[str | None] = set()

    def add_adapter(self, folder: Path) -> str:
        """Makes vLLM serve the adapter in `folder`, which must not change. Returns its name."""
        name = str(folder.absolute())
        config = read_json(folder / "adapter_config.json")
        self.ranks[name] = int(config.get("r") or 0)
        self.problem = self.problem or lora_problem(config)
        self.close()  # its largest rank was decided when it started
        return name

    def complete(
        self,
        model: torch.nn.Module,
        adapter: str | None,
        prompts: Sequence[list[int]],
        limits: Sequence[int],
        stop_ids: Sequence[int],
        context_length: int,
        progress: Callable[[int], None],
    ) -> list[list[int]]:
        """The tokens that follow each prompt. `model` is the same model in this process.

        If vLLM does not support the model, fails, or gives other answers, raises VllmNotUsed, or MachineError if the
        config requires vLLM.
        """
        num_done = 0

        def count(completed: int) -> None:
            nonlocal num_done
            num_done += completed
            progress(completed)

        is_required = current_hardware().inference_engine == "vllm"
        try:
            if self.problem is not None:
                raise RunError(self.problem)
            process = self._start(prompts, limits, context_length)
            self.description = f"vLLM {process.description['version']}"
            if adapter not in self._tried:
                trial = partial(measure_differences, process, model, adapter, prompts, limits, stop_ids)
                with track_activity("comparing vLLM with the model in this process"):
                    measured = attempt(trial)
                if isinstance(measured, OutOfMemory):
                    raise RunError("memory does not suffice for vLLM beside the model in this process")
                _check_differences(measured, FP32 if is_fp32(model) else HALF)
                self._tried.add(adapter)
            arguments = {"prompts": list(prompts), "limits": list(limits), "stop_ids": list(stop_ids)}
            tokens: list[list[int]] = process.call("complete", count, **arguments, adapter=adapter)
            if not is_required:
                self.close()  # so many tokens are rarely generated again, and other work needs the memory
        except RunError as error:
            self.problem = str(error)
            self.close()
            if is_required:
                raise MachineError(
                    f"pipeline.hardware.inference_engine: vllm: {error}; use inference_engine: auto"
                ) from None
            progress(-num_done)  # these prompts are completed again
            logging.getLogger(__name__).warning(f"completions are not generated by vLLM: {error}")
            raise VllmNotUsed from None
        return tokens

    def _start(self, prompts: Sequence[list[int]], limits: Sequence[int], context_length: int) -> EngineProcess:
        longest = max(len(prompt) + limit for prompt, limit in zip(prompts, limits, strict=True))
        if self._process is not None and longest <= self._length:
            return self._process
        for other in [self, *_running]:
            other.close()  # two would share the memory of the GPU
        self._length = min(context_length, max(MIN_LENGTH, 2 ** math.ceil(math.log2(longest))))
        hardware = current_hardware()
        memory_fraction = None
        environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}  # one process, whose end frees the memory
        if hardware.device.type == "cuda":
            empty_cache(hardware.device)
            free, total = torch.cuda.mem_get_info(hardware.device)
            memory_fraction = round(MEMORY_FRACTION * free / total, 3)
        else:
            available = psutil.virtual_memory().available // 4
            environment["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, min(CPU_CACHE_BYTES, available) // 2**30))
            environment["CUDA_VISIBLE_DEVICES"] = ""  # of a GPU that the config does not use
        rank = next(one for one in LORA_RANKS if one >= max(self.ranks.values())) if self.ranks else None
        with track_activity("starting vLLM"):
            self._process = EngineProcess(
                PROGRAM,
                "VllmEngine",
                {
                    "folder": str(self.folder),
                    "dtype": DTYPE_NAMES[hardware.dtype],
                    "max_tokens": self._length,
                    "max_lora_rank": rank,
                    "memory_fraction": memory_fraction,
                },
                lambda reason: f"vLLM failed ({reason})",
                environment=environment,
            )
        self._close_process = weakref.finalize(self, self._process.close)
        _running.add(self)
        platform = self._process.description["platform"]
        if platform != hardware.device.type:
            raise RunError(f"it is built for {platform}, and the model is on {hardware.device.type}")
        return self._process

    def close(self) -> None:
        """Ends the process, which gives its memory back."""
        if self._close_process is not None:
            self._close_process()
        self._process = None
        self._tried.clear()
        _running.discard(self)


def lora_problem(config: Mapping[str, Any]) -> str | None:
    """Why vLLM cannot serve the adapter of an adapter_config.json; None if it can."""
    if config.get("peft_type") != "LORA":
        return f"it serves LoRA adapters, not {config.get('peft_type')}"
    if int(config.get("r") or 0) > LORA_RANKS[-1]:
        return f"it serves LoRA adapters up to rank {LORA_RANKS[-1]}"
    if config.get("use_dora"):
        return "it serves no DoRA adapters"
    if str(config.get("init_lora_weights")).lower().startswith(REWRITING_INITS):
        return f"it serves the base's own weights, and init_lora_weights: {config['init_lora_weights']} changes them"
    different = [key for key, value in NEUTRAL_LORA_OPTIONS.items() if (config.get(key) or value) != value]
    return f"it serves no adapters with {different[0]}" if different else None


def should_use_vllm(vllm: VllmModel | None, model: torch.nn.Module, settings: Mapping[str, Any], tokens: int) -> bool:
    """Whether `tokens` tokens are to be generated by vLLM.

    With `inference_engine: vllm` all greedy completions of an evaluation are. With `auto` those are on a CUDA GPU where
    vLLM is installed, if one call generates so many that its start pays.
    """
    hardware = current_hardware()
    if vllm is None or hardware.inference_engine == "torch" or not is_greedy(settings):
        return False
    if hardware.inference_engine == "vllm":
        return True
    if vllm.problem is not None or hardware.device.type != "cuda" or vllm_version() is None:
        return False
    minimum = MIN_TOKENS if supports_packed_prefill(model) else MIN_TOKENS_GENERATE
    return tokens >= minimum


def reference_losses(model: torch.nn.Module, sequences: TokenSequences) -> list[float | None]:
    """The mean loss of the supervised tokens of each sequence, in nats per token; None without supervised tokens."""
    losses: list[float | None] = [None] * len(sequences)
    scored = [index for index, length in enumerate(sequences.supervised_lengths) if length]
    if scored:
        for index, loss in zip(scored, sequence_mean_losses(model, sequences.select(scored)), strict=True):
            losses[index] = loss
    return losses


def measure_differences(
    process: EngineProcess,
    model: torch.nn.Module,
    adapter: str | None,
    prompts: Sequence[list[int]],
    limits: Sequence[int],
    stop_ids: Sequence[int],
) -> Tolerance:
    """How far vLLM is from `model` after some of the prompts: the mean difference of log-probabilities, and by how much
    one of its greedy tokens is less likely than the model's own, in nats."""
    indices = np.unique(np.linspace(0, len(prompts) - 1, TRIAL_PROMPTS).astype(int)).tolist()
    sample, short = [prompts[index] for index in indices], [min(limits[index], TRIAL_TOKENS) for index in indices]
    arguments: dict[str, Any] = {"prompts": sample, "limits": short, "adapter": adapter}
    # Drawn tokens are uncertain ones. Of a token that is certain, a wrong model may be as certain.
    drawn = process.call("sample", **arguments, temperature=TRIAL_TEMPERATURE)
    answers = process.call("complete", **arguments, stop_ids=list(stop_ids))
    errors, gaps = [], []
    with torch.no_grad():
        for prompt, (tokens, theirs), answer in zip(sample, drawn, answers, strict=True):
            own, _ = _log_probs(model, prompt, tokens)
            errors.append((own - torch.tensor(theirs)).abs())
            own, best = _log_probs(model, prompt, answer)
            gaps.append(best - own)
    return Tolerance(float(torch.cat(errors).mean()), float(torch.cat(gaps).max()))


def _check_differences(measured: Tolerance, tolerance: Tolerance) -> None:
    """Raises RunError if vLLM's answers are not those of the model; also for NaN."""
    if not measured.mean_error <= tolerance.mean_error:
        raise RunError(
            f"its log-probabilities differ from the model's by {measured.mean_error:.3g} nats on average; rounding "
            f"makes {tolerance.mean_error:g}"
        )
    if not measured.tie <= tolerance.tie:
        raise RunError(
            f"a greedy token of it is less likely than the model's own by {measured.tie:.3g} nats; rounding makes "
            f"{tolerance.tie:g}"
        )


def _log_probs(model: torch.nn.Module, prompt: list[int], tokens: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each of the tokens after the prompt, and that of the most likely token in its place, in
    nats: fp32 on the CPU."""
    sequence = TokenSequences.supervised_from([np.asarray([*prompt, *tokens])], [len(prompt)])
    logits, targets = supervised_logits(model, sequence)
    log_probs = logits.float().log_softmax(-1)
    return log_probs.gather(-1, targets[:, None])[:, 0].cpu(), log_probs.max(-1).values.cpu()
