"""The section `pipeline.hardware:`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipelines.config.base import Section


class HardwareSettings(Section):
    """What training and evaluation run on. Without it, the fastest that works on the machine."""

    device: Literal["auto", "cuda", "mps", "xpu", "cpu"] = Field(
        default="auto", description="Device of the models; auto is the first of cuda, xpu, mps and cpu that works."
    )
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        default="auto",
        description="Precision of matrix products and frozen weights; auto is bf16 where the GPU has it, fp16 on older "
        "CUDA GPUs, fp32 elsewhere. Trained weights are fp32.",
    )
    attention: Literal["auto", "varlen", "dense", "loop"] = Field(
        default="auto",
        description="Attention over packed sequences: varlen (flash kernel), dense (one masked call), or loop (a call "
        "per sequence); auto is the fastest that gives the logits of the model's own attention.",
    )
    inference_engine: Literal["auto", "torch", "vllm"] = Field(
        default="auto",
        description="What generates greedy completions: torch (alfine's own decoding), or vllm; auto is vllm on a CUDA "
        "GPU where it is installed and so many tokens are to be generated that its start pays. vLLM is used if its "
        "answers to some of the prompts are the model's.",
    )
    offload_optimizer: bool = Field(
        default=False,
        description="Without an adapter: whether the optimizer, its states and an fp32 copy of the weights are in main "
        "memory, and the weights on the GPU in bf16. It needs a quarter of the GPU memory, and each step takes longer.",
    )
