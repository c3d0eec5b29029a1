"""A stand-in for the parts of vLLM that `vllm_engine` uses: a Llama in plain torch, one prompt at a time.

The environment variable STAND_IN_FAULT makes it fail in one way.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

__version__ = "0.0 (stand-in)"
FAULT = os.environ.get("STAND_IN_FAULT")


class SamplingParams(SimpleNamespace):
    pass


class RequestOutput(SimpleNamespace):
    pass


class Llama:
    """The logits of a Llama in a folder with one file of weights, and of a LoRA adapter merged into them."""

    def __init__(self, folder: str, adapter: str | None = None) -> None:
        self.config = SimpleNamespace(**json.loads((Path(folder) / "config.json").read_text()))
        self.weights = load_file(Path(folder) / "model.safetensors")
        if adapter is not None:
            settings = json.loads((Path(adapter) / "adapter_config.json").read_text())
            changes = load_file(Path(adapter) / "adapter_model.safetensors")
            for name in [name for name in changes if name.endswith("lora_A.weight")]:
                target = name.removeprefix("base_model.model.").replace("lora_A.", "")
                product = changes[name.replace("lora_A", "lora_B")] @ changes[name]
                self.weights[target] = self.weights[target] + settings["lora_alpha"] / settings["r"] * product

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Those after the last token."""
        config, weights = self.config, self.weights
        heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        frequencies = config.rope_parameters["rope_theta"] ** -(torch.arange(0, size, 2) / size)
        angles = (torch.arange(len(ids))[:, None] * frequencies).repeat(1, 2)
        hidden = weights["model.embed_tokens.weight"][torch.tensor(ids)]

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + config.rms_norm_eps)
            return x * scale * weights[f"{name}.weight"]

        def rotate(x: torch.Tensor) -> torch.Tensor:
            halves = torch.cat([-x[..., size // 2 :], x[..., : size // 2]], dim=-1)
            return x * angles.cos() + halves * angles.sin()

        for layer in range(config.num_hidden_layers):
            name = f"model.layers.{layer}"
            x = norm(hidden, f"{name}.input_layernorm")
            q, k, v = (
                (x @ weights[f"{name}.self_attn.{one}_proj.weight"].T).view(len(ids), -1, size).transpose(0, 1)
                for one in "qkv"
            )
            k, v = (one.repeat_interleave(heads // groups, dim=0) for one in (rotate(k), v))
            attended = F.scaled_dot_product_attention(rotate(q), k, v, is_causal=True).transpose(0, 1).flatten(1)
            hidden = hidden + attended @ weights[f"{name}.self_attn.o_proj.weight"].T
            x = norm(hidden, f"{name}.post_attention_layernorm")
            gate, up, down = (weights[f"{name}.mlp.{one}_proj.weight"].T for one in ("gate", "up", "down"))
            hidden = hidden + (F.silu(x @ gate) * (x @ up)) @ down
        return norm(hidden[-1], "model.norm") @ weights["model.embed_tokens.weight"].T


class LLM:
    def __init__(self, model: str, dtype: str, max_model_len: int, load_format: str, **settings: Any) -> None:
        assert load_format == "safetensors" and not settings["trust_remote_code"] and settings["skip_tokenizer_init"]
        assert dtype == "float32"
        print("a line of the library on standard output")
        if FAULT == "load":
            raise ValueError("Model architectures ['SomeModel'] are not supported")
        self.folder, self.max_model_len, self.settings = model, max_model_len, settings
        self.models = {None: Llama(model)}
        self.requests: list[Any] = []
        self.num_done = 0
        self.llm_engine = self

    def add_request(self, request_id: str, prompt: dict[str, Any], params: Any, lora_request: Any = None) -> None:
        assert len(prompt["prompt_token_ids"]) + params.max_tokens <= self.max_model_len
        self.requests.append((request_id, prompt["prompt_token_ids"], params, lora_request))

    def has_unfinished_requests(self) -> bool:
        return bool(self.requests)

    @torch.no_grad()
    def step(self) -> list[Any]:
        request_id, prompt, params, lora = self.requests.pop()  # not in order
        self.num_done += 1
        if self.num_done > 12 and FAULT == "crash":  # after the trial
            os.kill(os.getpid(), signal.SIGKILL)
        tokens, logprobs = self._generate(self._model(lora), list(prompt), params)
        if FAULT == "prompt":
            prompt = [*prompt[:-1], prompt[-1] + 1]
        completion = SimpleNamespace(token_ids=tuple(tokens), logprobs=logprobs)
        return [RequestOutput(request_id=request_id, finished=True, prompt_token_ids=prompt, outputs=[completion])]

    def _model(self, lora: Any) -> Llama:
        path = None if lora is None or FAULT == "adapter" else lora.path
        if path not in self.models:
            assert self.settings["enable_lora"] and self.settings["max_lora_rank"] == 8
            self.models[path] = Llama(self.folder, path)
        return self.models[path]

    def _generate(self, model: Llama, ids: list[int], params: Any) -> tuple[list[int], list[Any]]:
        generator = torch.Generator().manual_seed(getattr(params, "seed", 0))
        tokens: list[int] = []
        logprobs = []
        while len(tokens) < params.max_tokens:
            logits = model.logits(ids + tokens)
            if params.temperature:
                probabilities = (logits / params.temperature).softmax(-1)
                token = int(torch.multinomial(probabilities, 1, generator=generator))
            else:
                token = int(logits.argmax())
                if FAULT == "greedy" and len(tokens) == 2:
                    token = int(logits.topk(5).indices[-1])
            tokens.append(token)
            logprobs.append({token: SimpleNamespace(logprob=float(logits.log_softmax(-1)[token]))})
            if token in getattr(params, "stop_token_ids", ()):
                break
        return tokens, logprobs
