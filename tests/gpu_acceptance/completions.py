"""Completions against transformers' `generate`, and the evaluation pass."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from pipelines.config.chat_template import PLAIN_TEXT
from pipelines.data.prompt_format import PromptFormat
from pipelines.evaluation.completions import Completion, InferenceSettings, LoadedModel, complete
from pipelines.evaluation.slot_decoding import decode_greedy
from pipelines.evaluation.vllm_decoding import VllmModel
from pipelines.modeling.loading import load_causal_lm
from pipelines.modeling.packing import sequence_mean_losses
from pipelines.modeling.token_sequences import TokenSequences
from tests.gpu_acceptance.attention import long_rows, short_rows
from tests.gpu_acceptance.kernels import fused_model
from tests.gpu_acceptance.models import saved_model, texts_model
from tests.gpu_acceptance.registry import Context, Measurements, at_least, check
from tests.gpu_acceptance.results import free_memory

PROMPTS, NEW_TOKENS, SINGLE_PROMPTS = 128, 64, 4
GREEDY = {"do_sample": False}


def prompts(count: int) -> list[list[int]]:
    """Token ids of 35 to 90 random tokens."""
    return [[int(token) for token in ids] for ids in short_rows(count).input_ids]


def sizes(context: Context) -> tuple[int, int]:
    """The number of prompts and of new tokens."""
    return (PROMPTS, NEW_TOKENS) if context.is_gpu else (8, 8)


def seconds_of(work: Any, context: Context) -> float:
    started = time.perf_counter()
    work()
    if context.is_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def generate_tokens(model: Any, rows: list[list[int]], new_tokens: int) -> list[list[int]]:
    """Greedy tokens of transformers' `generate` for prompts in one left-padded batch."""
    width, device = max(map(len, rows)), next(model.parameters()).device
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    limits = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
    with torch.inference_mode():
        output = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **limits)
    return list(output[:, width:].tolist())


def generate_seconds(folder: Path, context: Context, batch: int) -> float:
    """Seconds per prompt of transformers' `generate` in batches of `batch` (1: on SINGLE_PROMPTS prompts only)."""
    count, new_tokens = sizes(context)
    dtype = torch.bfloat16 if context.is_gpu else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(context.device).eval()
    rows = prompts(count)[: SINGLE_PROMPTS if batch == 1 else count]
    generate_tokens(model, rows[:batch], 2)  # warm-up

    def run() -> None:
        for start in range(0, len(rows), batch):
            generate_tokens(model, rows[start : start + batch], new_tokens)

    return seconds_of(run, context) / len(rows)


def alfine_seconds(model: Any, folder: Path, context: Context, settings: InferenceSettings) -> tuple[float, float]:
    """Seconds and generated tokens per prompt of `complete` on a loaded model, after a warm-up of the same shape."""
    count, new_tokens = sizes(context)
    loaded = LoadedModel(model, PromptFormat.from_folder(folder, PLAIN_TEXT), settings)
    rows = prompts(count)

    def run() -> list[Completion]:
        return complete(loaded, rows, GREEDY, [new_tokens] * len(rows))

    num_tokens = sum(completion.num_generated_tokens for completion in run())
    return seconds_of(run, context) / len(rows), num_tokens / len(rows)


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Products in fp32 within the block, also after a training has allowed TF32, where nearly equal logits change places."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)


@check(
    1,
    10,
    at_least("same_completions", 0.95, portable=True),
    at_least("different_tokens", 20, portable=True),
)
def greedy_decoding(context: Context) -> Measurements:
    """Greedy completions in slots (on a GPU, as a CUDA graph) against transformers' `generate`, both in fp32: the
    fraction of 40 prompts with the same 16 tokens."""
    folder = texts_model(context)
    rows, new_tokens = prompts(40 if context.is_gpu else 6), 16
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(context.device).eval()
    plain.generation_config.eos_token_id = None
    sequences = TokenSequences.supervised_from([np.asarray(row) for row in rows], list(map(len, rows)))
    model = load_causal_lm(folder, allow_half_precision=False)
    with exact_products():
        expected = generate_tokens(plain, rows, new_tokens)
        actual, _ = decode_greedy(model, sequences, [new_tokens] * len(rows), [], use_graph=context.is_gpu)
    return {
        "same_completions": sum(a == b for a, b in zip(actual, expected, strict=True)) / len(rows),
        "different_tokens": len({token for row in expected for token in row}),
    }


SETTINGS = {
    "default": InferenceSettings(),
    "generate": InferenceSettings(decoding="generate", merge_adapter=False),
    "unmerged": InferenceSettings(merge_adapter=False),
    "merged": InferenceSettings(merge_adapter=True),
}


def measure_completions(name: str, context: Context) -> Measurements:
    """Milliseconds per prompt by engine, and the ratios."""
    folder = saved_model(name, context)
    measured: Measurements = {}
    batched = generate_seconds(folder, context, batch=sizes(context)[0])
    single = generate_seconds(folder, context, batch=1)
    measured |= {"generate_batched_ms": 1e3 * batched, "generate_single_ms": 1e3 * single}
    free_memory()
    model = load_causal_lm(folder, allow_half_precision=True)
    seconds, num_tokens = alfine_seconds(model, folder, context, InferenceSettings())
    # `generate` is forced to all new tokens.
    measured |= {"base_ms": 1e3 * seconds, "completed": num_tokens / sizes(context)[1]}
    context.record(f"{name} base", measured)
    del model
    free_memory()
    adapted = fused_model(folder).eval()
    for label, settings in SETTINGS.items():
        if label == "generate" and name != "135m":  # 30 s with 1.5B, and `generate` of the base is measured above
            continue
        adapter_seconds, num_tokens = alfine_seconds(adapted, folder, context, settings)
        measured[f"adapter_{label}_ms"] = 1e3 * adapter_seconds
        recorded = {"ms_per_prompt": 1e3 * adapter_seconds, "tokens_per_prompt": num_tokens}
        context.record(f"{name} adapter {label}", recorded)
    measured |= {"times_single": single / seconds, "times_batched": batched / seconds}
    return measured


@check(
    3, 60, at_least("times_single", 20.0), at_least("times_batched", 1.0), at_least("completed", 0.99, portable=True)
)
def completions_1_5b(context: Context) -> Measurements:
    """128 prompts × 64 greedy tokens on 1.5B: milliseconds per prompt of alfine (with an adapter: merged or not), of
    transformers' `generate` in one batch, and one prompt at a time (4 prompts, scaled); of vLLM where it is installed."""
    measured = measure_completions("1.5b", context)
    if importlib.util.find_spec("vllm") and context.is_gpu:
        measured |= measure_vllm(saved_model("1.5b", context), context)
    return measured


@check(
    3, 45, at_least("times_single", 20.0), at_least("times_batched", 1.0), at_least("completed", 0.99, portable=True)
)
def completions_135m(context: Context) -> Measurements:
    """The same on 135M."""
    return measure_completions("135m", context)


def measure_vllm(folder: Path, context: Context) -> Measurements:
    """Seconds until vLLM has started and passed its trial, and milliseconds per prompt after that, all new tokens."""
    count, new_tokens = sizes(context)
    model = load_causal_lm(folder, allow_half_precision=True).eval()
    vllm, rows = VllmModel(folder, None), prompts(count)

    def run() -> None:
        vllm.complete(model, None, rows, [new_tokens] * count, [], 4096, lambda completed: None)

    first, second = seconds_of(run, context), seconds_of(run, context)
    vllm.close()
    return {"vllm_start_s": first - second, "vllm_ms": 1e3 * second / count}


@check(3, 15, at_least("tokens_per_second_short", 1.0, portable=True))
def evaluation_pass(context: Context) -> Measurements:
    """Losses of references without gradients on 1.5B (validation, retention evals): tokens per second on rows of about
    60 tokens with a common beginning, and on rows of 2,048 tokens."""
    model = load_causal_lm(saved_model("1.5b", context), allow_half_precision=True).eval()
    batches = {"short": short_rows(512), "2048": long_rows(16, 2048)}
    if not context.is_gpu:
        batches = {"short": short_rows(8)}
    measured: Measurements = {}
    for name, rows in batches.items():
        list(sequence_mean_losses(model, rows[:4]))
        seconds = seconds_of(lambda rows=rows: list(sequence_mean_losses(model, rows)), context)
        measured[f"tokens_per_second_{name}"] = rows.num_tokens / seconds
    return measured
