"""Requirements that several strategies share. Each function returns why a job does not meet one, None if it does."""

from __future__ import annotations

from pipelines.config.strategy_registry import JobTraits

WITHOUT_METRIC = {"adafactor", "muon", "lion", "lion_8bit", "paged_lion", "paged_lion_8bit", "lamb", "lars"}
"""The optimizers whose step is no gradient that is scaled entry by entry: signs, whole matrices, norms of layers."""


def adapter_conflict(strategy: str, job: JobTraits) -> str | None:
    """A strategy that handles the matrices of LoRA, or every weight without an adapter, supports no other adapter."""
    if job.adapter is None:
        return None
    if job.adapter.get("use_dora"):
        return f"{strategy} does not support DoRA; write use_dora: false"
    bias_type = job.adapter.get("bias_type", "none")
    if bias_type != "none":
        return f"{strategy} does not cover the biases that bias_type: {bias_type} trains; write bias_type: none"
    if job.adapter.get("type") != "lora":
        return f"{strategy} needs adapter: {{type: lora}}, or no adapter"
    return None


def penalty_conflict(strategy: str, job: JobTraits) -> str | None:
    """A penalty on ΔW = s·B·A protects the base only where ΔW is 0 at the start.

    Without an adapter it needs an optimizer with a diagonal metric, see `pipelines.forgetting.optimizer_metric`.
    """
    conflict = adapter_conflict(strategy, job)
    if job.adapter is None and job.optimizer in WITHOUT_METRIC:
        return (
            f"{strategy} takes a step in the metric of the optimizer, and {job.optimizer} does not scale each gradient "
            "by a number of its own; write type: adamw, or adamw_8bit"
        )
    if conflict is None and job.adapter is not None and job.adapter.get("init_lora_weights") in ("pissa", "olora"):
        return (
            f"{strategy} penalizes the adapter's ΔW, which is not 0 at the start with init_lora_weights: "
            f"{job.adapter['init_lora_weights']}; write init_lora_weights: default"
        )
    return conflict
