"""A program that answers prompts with llama.cpp through llama-cpp-python.

It imports nothing of alfine. `evaluation.engine_server` calls its methods.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from typing import Any

import llama_cpp
import numpy as np
from llama_cpp import llama_chat_format

SLOTS = 8
"""Sequences that are decoded together."""
BATCH_TOKENS = 512
"""Tokens of a forward pass."""


class LlamaCppEngine:
    """A GGUF file.

    Args:
        file: the path of the file.
        longest: the tokens of the longest prompt with its completion.
        fp32_cache: whether keys and values are cached in fp32 instead of llama.cpp's default, fp16.
    """

    def __init__(self, file: str, longest: int, fp32_cache: bool) -> None:
        kind = llama_cpp.GGML_TYPE_F32 if fp32_cache else None
        self.llama = llama_cpp.Llama(file, n_ctx=256, verbose=False, type_k=kind, type_v=kind, n_gpu_layers=-1)
        self.model = self.llama._model.model
        self.vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.num_tokens = llama_cpp.llama_vocab_n_tokens(self.vocabulary)
        self.length = longest + 8
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = SLOTS * self.length
        parameters.n_batch = max(BATCH_TOKENS, self.length)
        parameters.n_seq_max = SLOTS
        parameters.kv_unified = True
        threads = os.cpu_count() or 1
        parameters.n_threads = parameters.n_threads_batch = int(os.environ.get("OMP_NUM_THREADS", threads))
        if kind is not None:
            parameters.type_k = parameters.type_v = kind
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(parameters.n_batch, 0, 1)
        self.batch_size = int(parameters.n_batch)

    def describe(self) -> dict[str, Any]:
        """Names and versions, and what the file says about the chat template and the tokens that end a text."""
        device = "gpu" if llama_cpp.llama_supports_gpu_offload() else "cpu"
        metadata = self.llama.metadata
        ends = [token for token in range(self.num_tokens) if llama_cpp.llama_vocab_is_eog(self.vocabulary, token)]
        return {
            "name": "llama.cpp",
            "versions": {"llama-cpp-python": llama_cpp.__version__},
            "device": device,
            "chat_template": metadata.get("tokenizer.chat_template"),
            "end_tokens": ends,
            "adds_bos": bool(llama_cpp.llama_vocab_get_add_bos(self.vocabulary)),
        }

    def encode(self, prompts: list[dict[str, Any]]) -> list[list[int] | str]:
        """The tokens of each prompt, or why it has none, as llama-cpp-python's chat completion renders it."""
        encoded: list[list[int] | str] = []
        for prompt in prompts:
            try:
                if prompt.get("text") is not None:
                    encoded.append(self.llama.tokenize(prompt["text"].encode(), add_bos=True, special=True))
                    continue
                arguments = {"messages": prompt["messages"], "tools": prompt["tools"], **prompt["variables"]}
                text = self._formatter()(**arguments).prompt
                encoded.append(self.llama.tokenize(text.encode(), add_bos=False, special=True))
            except Exception as error:  # a template is a program and can raise anything
                encoded.append(f"{type(error).__name__}: {error}")
        return encoded

    def _formatter(self) -> Any:
        """The formatter that `llama_cpp.Llama` makes of the file's chat template."""
        return llama_chat_format.Jinja2ChatFormatter(
            template=self.llama.metadata["tokenizer.chat_template"],
            eos_token=self._text(self.llama.token_eos()),
            bos_token=self._text(self.llama.token_bos()),
        )

    def _text(self, token: int) -> str:
        return "" if token == -1 else str(self.llama._model.token_get_text(token))

    def complete(self, prompts: list[list[int]], limits: list[int], greedy: bool) -> Iterator[dict[str, Any]]:
        """Completes tokenized prompts by greedy decoding, up to a token that ends a text."""
        generated: list[list[int]] = [[] for _ in prompts]
        waiting = list(range(len(prompts)))[::-1]
        active: dict[int, int] = {}
        while waiting or active:
            for slot in range(SLOTS):
                if slot not in active and waiting:
                    index = waiting.pop()
                    active[slot] = index
                    self._forget(slot)
                    generated[index].append(self._first_token(slot, prompts[index]))
            for slot, index in list(active.items()):
                if self._is_done(generated[index], limits[index]):
                    del active[slot]
                    yield {"progress": 1}
            step = list(active.items())
            for place, (slot, index) in enumerate(step):
                length = len(prompts[index]) + len(generated[index])
                self._put(place, generated[index][-1], length - 1, slot, True)
            if step:
                self._decode(len(step))
            for place, (_, index) in enumerate(step):
                generated[index].append(int(self._logits(place).argmax()))
        yield {"result": generated}

    def _is_done(self, tokens: list[int], limit: int) -> bool:
        return len(tokens) >= limit or bool(llama_cpp.llama_vocab_is_eog(self.vocabulary, tokens[-1]))

    def _first_token(self, slot: int, prompt: list[int]) -> int:
        for position, token in enumerate(prompt):
            self._put(position, token, position, slot, position == len(prompt) - 1)
        self._decode(len(prompt))
        return int(self._logits(len(prompt) - 1).argmax())

    def score(self, sequences: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """For each sequence of a prompt and an answer: the log-probability of every token of the answer, and the most
        likely token in its place with its log-probability."""
        scores = []
        for sequence in sequences:
            prompt, answer = sequence["prompt"], sequence["answer"]
            tokens = [*prompt, *answer[:-1]]
            self._forget(0)
            for position, token in enumerate(tokens):
                self._put(position, token, position, 0, position >= len(prompt) - 1)
            self._decode(len(tokens))
            own, best, choices = [], [], []
            for offset, token in enumerate(answer):
                logits = self._logits(len(prompt) - 1 + offset).astype(np.float64)
                total = float(logits.max() + np.log(np.exp(logits - logits.max()).sum()))
                choice = int(logits.argmax())
                own.append(float(logits[token]) - total)
                best.append(float(logits[choice]) - total)
                choices.append(choice)
            scores.append({"own": own, "best": best, "tokens": choices})
            yield {"progress": 1}
        yield {"result": scores}

    # --- llama.cpp's batch ---

    def _put(self, index: int, token: int, position: int, slot: int, needs_logits: bool) -> None:
        batch = self.batch
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, slot
        batch.logits[index] = needs_logits

    def _decode(self, count: int) -> None:
        self.batch.n_tokens = count
        if status := llama_cpp.llama_decode(self.context, self.batch):
            raise RuntimeError(f"llama_decode returned {status}")

    def _logits(self, index: int) -> np.ndarray:
        pointer = llama_cpp.llama_get_logits_ith(self.context, index)
        address = ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, shape=(self.num_tokens,)).copy()

    def _forget(self, slot: int) -> None:
        llama_cpp.llama_memory_seq_rm(self.memory, slot, -1, -1)
