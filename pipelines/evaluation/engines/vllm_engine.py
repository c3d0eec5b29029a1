"""Greedy completions by vLLM (https://docs.vllm.ai). It imports nothing of alfine; see `engine_server`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import vllm
from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform


class VllmEngine:
    """A base model, and LoRA adapters on it.

    Args:
        folder: the folder of the base.
        dtype: torch's name of the dtype of weights and products.
        max_tokens: the tokens of the longest prompt with its completion.
        max_lora_rank: the largest rank of the adapters, of those that vLLM allows; None without adapters.
        memory_fraction: the part of the GPU's memory that vLLM may take; None on other devices.
    """

    def __init__(
        self, folder: str, dtype: str, max_tokens: int, max_lora_rank: int | None, memory_fraction: float | None
    ) -> None:
        settings: dict[str, Any] = {}
        if max_lora_rank is not None:
            settings |= {"enable_lora": True, "max_lora_rank": max_lora_rank, "max_loras": 1}
        if memory_fraction is not None:
            settings["gpu_memory_utilization"] = memory_fraction
        self.engine = vllm.LLM(
            model=folder,
            dtype=dtype,
            max_model_len=max_tokens,
            skip_tokenizer_init=True,  # it gets tokens and gives tokens
            generation_config="vllm",  # no settings of the model's folder
            load_format="safetensors",  # no pickles
            trust_remote_code=False,
            enforce_eager=current_platform.is_cpu(),  # compiling takes longer there than most completions
            disable_log_stats=True,
            seed=0,
            **settings,
        ).llm_engine
        self.num_requests = 0

    def describe(self) -> dict[str, Any]:
        """The version, and the type of the device, in torch's words."""
        return {"version": vllm.__version__, "platform": current_platform.device_type}

    def complete(
        self, prompts: list[list[int]], limits: list[int], stop_ids: list[int], adapter: str | None
    ) -> Iterator[dict[str, Any]]:
        """The tokens that follow each prompt, up to and including the first of `stop_ids`, at most its limit.

        adapter: the folder of the adapter; None for the base.
        """
        parameters = [
            vllm.SamplingParams(
                temperature=0.0,
                max_tokens=limit,
                # The tokens of the model's folder that end a text may be others.
                ignore_eos=True,
                stop_token_ids=stop_ids,
                detokenize=False,
            )
            for limit in limits
        ]
        generated: dict[int, list[int]] = {}
        for index, output in self._run(prompts, parameters, adapter):
            generated[index] = list(output.outputs[0].token_ids)
            yield {"progress": 1}
        yield {"result": [generated[index] for index in range(len(prompts))]}

    def sample(
        self, prompts: list[list[int]], limits: list[int], temperature: float, adapter: str | None
    ) -> list[tuple[list[int], list[float]]]:
        """Tokens drawn after each prompt, its limit of them, and the model's log-probability of each, in nats."""
        parameters = [
            vllm.SamplingParams(
                temperature=temperature, max_tokens=limit, seed=index, logprobs=0, ignore_eos=True, detokenize=False
            )
            for index, limit in enumerate(limits)
        ]
        drawn: dict[int, tuple[list[int], list[float]]] = {}
        for index, output in self._run(prompts, parameters, adapter):
            tokens = list(output.outputs[0].token_ids)
            candidates = zip(tokens, output.outputs[0].logprobs, strict=True)
            drawn[index] = tokens, [logprobs[token].logprob for token, logprobs in candidates]
        return [drawn[index] for index in range(len(prompts))]

    def _run(
        self, prompts: list[list[int]], parameters: list[vllm.SamplingParams], adapter: str | None
    ) -> Iterator[tuple[int, vllm.RequestOutput]]:
        """Yields each output with the index of its prompt, as they end."""
        lora = None if adapter is None else LoRARequest(adapter, _number_of(adapter), adapter)
        first = self.num_requests
        self.num_requests += len(prompts)
        for index, (prompt, one) in enumerate(zip(prompts, parameters, strict=True)):
            self.engine.add_request(str(first + index), {"prompt_token_ids": prompt}, one, lora_request=lora)
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished:
                    index = int(output.request_id) - first
                    if list(output.prompt_token_ids) != prompts[index]:
                        raise RuntimeError(f"prompt {index + 1} reached the model with other tokens")
                    yield index, output


_adapters: dict[str, int] = {}


def _number_of(adapter: str) -> int:
    """vLLM tells adapters apart by a number from 1 on."""
    return _adapters.setdefault(adapter, len(_adapters) + 1)
