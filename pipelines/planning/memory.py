"""The memory of a job by part, from the sizes of the model and of the largest micro-batch.

The terms follow what the training step allocates, see `pipelines.training.trainer`. `tests.benchmarks.plans` compares
them with measured peaks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.config.job import Job
from pipelines.config.optimizer_checks import optimizer_type
from pipelines.planning.model_shape import AdaptedMatrix, ModelShape
from pipelines.planning.target_hardware import TargetHardware
from pipelines.planning.workload import Workload

PROCESS_BYTES = {"cpu": 1_200_000_000, "cuda": 0, "mps": 1_200_000_000}
"""Python with torch, transformers and Ludwig. On a GPU it is in main memory."""
CONTEXT_BYTES = {"cpu": 0, "cuda": 900_000_000, "mps": 0}
"""The CUDA context, the workspace of cuBLAS and what the allocator cannot use."""
FP32 = 4
MAX_CHUNK_LOGITS = {"cpu": 2**23, "cuda": 2**26, "mps": 2**26}
MIN_CHUNK_TOKENS = 128
CHUNK_COPIES = 3
"""Tensors as large as a chunk of logits: the logits, in fp32, and their gradient (`modeling.linear_cross_entropy`)."""
FULL_LOGITS_COPIES = 4
"""If the output layer is trained: logits, in fp32, log-probabilities and their gradient."""
MAX_PROMPTS, MAX_BATCH_TOKENS, PREFILL_TOKENS = 128, 32_768, 4096
"""Sizes of the batches of completions, see `evaluation.completions` and `evaluation.generation`."""
BACKWARD_FACTOR = {"cpu": 1.85, "cuda": 1.0, "mps": 1.0}
"""Memory of a pass divided by what its forward part saves. On a CPU, the allocator returns what the backward part
frees later than it takes new memory (measured by `tests.benchmarks.plans`); on a GPU, torch's cache reuses it."""
QUANTIZED_BACKWARD_FACTOR = 2.4
"""The same on a CPU with quantized weights, which are dequantized for each product, between the activations."""
AUTO_MICRO_BATCH_TOKENS = 16_384
AUTO_FRACTION = {"cpu": 0.4, "cuda": 0.8, "mps": 0.4}
"""`batch_size: auto`: what `training.micro_batches` fills."""
QUANTIZED_BYTES = {4: 0.5 + 4 / 64, 8: 1.0}
"""Bytes of a quantized weight: 4 bits with a scale in fp32 per 64 (QLoRA, arXiv:2305.14314)."""
MAIN_PARTS = ("weights", "adapter", "gradients", "optimizer state", "activations", "logits")


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by part, of training and of completions: the larger of the two is the peak.

    `micro_batch_tokens` is the size of the micro-batch that the activations are for.
    """

    training: dict[str, float]
    completions: dict[str, float]
    micro_batch_tokens: int
    trainable_parameters: int

    @property
    def training_peak(self) -> float:
        return sum(self.training.values())

    @property
    def completions_peak(self) -> float:
        return sum(self.completions.values())

    @property
    def peak(self) -> float:
        return max(self.training_peak, self.completions_peak)


def plan_memory(job: Job, model: ModelShape, workload: Workload, hardware: TargetHardware) -> MemoryPlan:
    """The memory of a job on `hardware`."""
    matrices = [] if job.adapter is None else model.adapted_matrices(job.adapter.get("target_modules"))
    trainable = trainable_parameters(job, model, matrices)
    process = PROCESS_BYTES[hardware.device] + CONTEXT_BYTES[hardware.device]
    weights = _weight_bytes(job, model, hardware)
    offloads = job.pipeline.hardware.offload_optimizer and hardware.device != "cpu"
    fixed: dict[str, float] = {
        "process": process,
        "weights": weights,
        "adapter": FP32 * trainable if job.adapter is not None else 0,
        "gradients": (2 if offloads else FP32) * trainable,
        "optimizer state": 0 if offloads else _optimizer_bytes(job, trainable),
        "strategies": _strategy_bytes(job, trainable),
    }
    per_token = activation_bytes_per_token(job, model, matrices, hardware)
    tokens = workload.micro_batch_tokens
    logits = _logits_bytes(job, model, workload, hardware)
    if tokens is None:
        free = hardware.memory - sum(fixed.values()) + (PROCESS_BYTES["cpu"] if hardware.device == "cpu" else 0)
        fits = int(max(AUTO_FRACTION[hardware.device] * free, 0) / per_token)
        step = round(workload.step_tokens)
        tokens = min(max(workload.longest, min(fits, AUTO_MICRO_BATCH_TOKENS)), max(step, workload.longest))
    factor = BACKWARD_FACTOR[hardware.device]
    if job.quantization is not None and hardware.device == "cpu":
        factor = QUANTIZED_BACKWARD_FACTOR
    per_token = factor * per_token + _transient_bytes(model, hardware)
    activations = per_token * tokens
    # The gradients of a step with one micro-batch come into being while its activations are released.
    has_one = tokens >= workload.step_tokens * 0.9
    reused = -min(activations, fixed["gradients"]) if has_one else 0
    training = fixed | {"activations": activations, "logits": logits, "gradients in place of activations": reused}
    return MemoryPlan(
        training, _completions(job, model, workload, hardware, process + weights, training), tokens, trainable
    )


def trainable_parameters(job: Job, model: ModelShape, matrices: list[AdaptedMatrix]) -> int:
    if job.adapter is None:
        return model.parameters
    rank = int(job.adapter.get("r", 8))
    kind = str(job.adapter.get("type", "lora"))
    if kind == "ia3":
        return sum(matrix.outputs for matrix in matrices)
    if kind == "vera":
        return sum(rank + matrix.outputs for matrix in matrices)
    parameters = sum(rank * (matrix.inputs + matrix.outputs) for matrix in matrices)
    if job.adapter.get("use_dora"):
        parameters += sum(matrix.outputs for matrix in matrices)
    return parameters


def _weight_bytes(job: Job, model: ModelShape, hardware: TargetHardware) -> float:
    if job.quantization is not None:
        bits = int(job.quantization.get("bits", 4))
        quantized = model.parameters - model.embedding_parameters
        return quantized * QUANTIZED_BYTES[bits] + model.embedding_parameters * hardware.bytes_per_value
    is_trained_in_fp32 = job.adapter is None and not job.pipeline.hardware.offload_optimizer
    return model.parameters * (FP32 if is_trained_in_fp32 else hardware.bytes_per_value)


def _optimizer_bytes(job: Job, trainable: int) -> float:
    """The moments of the optimizer, see `training.activation_memory.optimizer_state_bytes`."""
    kind = optimizer_type(job.trainer) or "adamw"
    if kind.startswith("paged"):
        return 0
    if "lion" in kind:
        moments = 1
    elif kind.startswith("sgd"):
        moments = 1 if (job.trainer.get("optimizer") or {}).get("momentum") else 0
    elif "adam" in kind or "lamb" in kind:
        moments = 2
    else:
        moments = 1
    return moments * (1 if "8bit" in kind else FP32) * trainable


def _strategy_bytes(job: Job, trainable: int) -> float:
    """Copies of the trained weights that strategies keep; see `forgetting.memory_estimate`."""
    copies = {"ewc": 4, "si": 5, "l2sp": 1, "replay": 1, "distill": 1}
    return FP32 * trainable * max((copies.get(name, 0) for name in job.pipeline.forgetting.strategies), default=0)


def activation_bytes_per_token(
    job: Job, model: ModelShape, matrices: list[AdaptedMatrix], hardware: TargetHardware
) -> float:
    """What the forward pass saves for the backward pass, per computed token.

    Counted in values from the operations of a pre-norm decoder with the packed attention, see
    tests/planning/test_memory.py, which compares it with the saved tensors of a Llama.
    """
    one_layer = _values_per_layer(job, model, matrices)
    if job.trainer.get("enable_gradient_checkpointing"):
        return hardware.bytes_per_value * (model.layers * model.hidden + one_layer)
    return hardware.bytes_per_value * model.layers * one_layer


def _values_per_layer(job: Job, model: ModelShape, matrices: list[AdaptedMatrix]) -> float:
    hidden, attention, mlp = model.hidden, model.attention_width, model.mlp_width
    trains_all = job.adapter is None
    # Queries, keys, values, the output of the attention with its log-normalizers; the MLP: the input of its activation,
    # and with a gate the activation and what it is multiplied with.
    values: float = 2 * attention + 2 * model.key_value_width + model.heads + (3 if model.is_gated else 1) * mlp
    # A norm keeps its input and the scale. If its weight is trained, also the input times the scale.
    values += model.norms_per_layer * (hidden + 1 + (hidden if trains_all and model.is_gated else 0))
    if model.has_query_norm:
        values += (2 if trains_all else 1) * (attention + model.key_value_width) + 2 * model.heads
    widths = {"attention": hidden, "mlp": hidden, "attention_output": attention, "mlp_output": mlp}
    if trains_all:
        return values + sum(widths.values())
    kinds = {matrix.kind for matrix in matrices}
    layers, rank = max(model.layers, 1), int((job.adapter or {}).get("r", 8))
    values += rank * len(matrices) / layers
    if (job.adapter or {}).get("dropout", 0.05):
        # The mask and the dropped input of every adapted matrix, instead of the input that several share.
        return values + 2 * sum(matrix.inputs for matrix in matrices) / layers
    return values + sum(width for kind, width in widths.items() if kind in kinds)


def _transient_bytes(model: ModelShape, hardware: TargetHardware) -> float:
    """Gradients of one layer's activations while the backward pass goes through it."""
    return hardware.bytes_per_value * (3 * model.mlp_width + 4 * model.hidden)


def _logits_bytes(job: Job, model: ModelShape, workload: Workload, hardware: TargetHardware) -> float:
    tokens = workload.micro_batch_supervised or 1
    needs_all = job.adapter is None or "distill" in job.pipeline.forgetting.strategies
    if needs_all:
        return FULL_LOGITS_COPIES * FP32 * tokens * model.vocabulary
    chunk = max(MIN_CHUNK_TOKENS, MAX_CHUNK_LOGITS[hardware.device] // model.vocabulary)
    return CHUNK_COPIES * FP32 * min(tokens, chunk) * model.vocabulary


def _completions(
    job: Job, model: ModelShape, workload: Workload, hardware: TargetHardware, loaded: float, training: dict[str, float]
) -> dict[str, float]:
    """The parts while the test rows are answered; the tuned model has its adapter."""
    test = [task for task in workload.tasks if task.evaluated["test"]]
    lengths: list[Any] = [(task.prompt + task.limit, task.evaluated["test"]) for task in test] or [(1.0, 1)]
    tokens = max(length * min(rows, MAX_PROMPTS, max(MAX_BATCH_TOKENS // length, 1)) for length, rows in lengths)
    rows = max(min(rows, MAX_PROMPTS) for _, rows in lengths)
    is_packed = hardware.device == "cpu" and job.quantization is None  # see `modeling.packed_weights`
    return {
        "process and weights": loaded,
        "packed weights": FP32 * min(model.active_parameters, model.parameters) if is_packed else 0,
        "adapter": training["adapter"],
        "cache of keys and values": tokens * model.key_value_bytes(hardware.bytes_per_value),
        "activations": min(PREFILL_TOKENS, tokens)
        * hardware.bytes_per_value
        * (6 * model.hidden + 4 * model.mlp_width),
        "logits": CHUNK_COPIES * FP32 * rows * model.vocabulary,
    }
