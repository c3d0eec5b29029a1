"""A program that answers prompts with transformers and PEFT, as their documentation shows it.

It imports nothing of alfine. `evaluation.engine_server` calls its methods.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import transformers

BATCH_SIZE = 16

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class TransformersEngine:
    """A model and its tokenizer, loaded from folders.

    Args:
        folder: the export: a model, or an adapter.
        base: the folder of the base of an adapter; None for a model.
        dtype: the dtype of the weights; None for that of the folder.
        quantization: arguments of BitsAndBytesConfig for the base of an adapter, or None.
    """

    def __init__(self, folder: str, base: str | None, dtype: str | None, quantization: dict[str, Any] | None) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        arguments: dict[str, Any] = {"dtype": getattr(torch, dtype) if dtype else "auto"}
        if quantization is not None:
            dtype_name = quantization["bnb_4bit_compute_dtype"]
            quantization = {**quantization, "bnb_4bit_compute_dtype": getattr(torch, dtype_name)}
            arguments["quantization_config"] = transformers.BitsAndBytesConfig(**quantization)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device != "cpu" or quantization is not None:
            arguments["device_map"] = {"": self.device}
        model = transformers.AutoModelForCausalLM.from_pretrained(base or folder, trust_remote_code=False, **arguments)
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        if base is not None:
            import peft  # a merged model must load where PEFT is not installed

            model = peft.PeftModel.from_pretrained(model, folder, trust_remote_code=False)
            self.versions["peft"] = peft.__version__
        self.model = model.eval()
        if quantization is not None and self.device == "cpu":
            # bitsandbytes packs 4-bit weights for CPUs with bf16 instructions, and then reads them wrongly under PEFT.
            for module in model.modules():
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    module.support_avx512bf16_for_cpu = False
        self.settings = transformers.GenerationConfig.from_pretrained(folder, trust_remote_code=False)

    def describe(self) -> dict[str, Any]:
        """Names and versions, the chat template, and the tokens that end an answer."""
        stops = self.settings.eos_token_id
        return {
            "name": "transformers",
            "versions": self.versions,
            "device": self.device,
            "chat_template": self.tokenizer.chat_template,
            "end_tokens": stops if isinstance(stops, list) else [stops],
        }

    def encode(self, prompts: list[dict[str, Any]]) -> list[list[int] | str]:
        """The tokens of each prompt, or why it has none. A prompt has `messages`, or `text` without a template."""
        encoded: list[list[int] | str] = []
        for prompt in prompts:
            try:
                if prompt.get("text") is not None:
                    encoded.append(self.tokenizer(prompt["text"])["input_ids"])
                    continue
                ids = self.tokenizer.apply_chat_template(
                    prompt["messages"],
                    tools=prompt["tools"],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=False,
                    **prompt["variables"],
                )
                encoded.append([int(token) for token in ids])
            except Exception as error:  # a template is a program and can raise anything
                encoded.append(f"{type(error).__name__}: {error}")
        return encoded

    def complete(self, prompts: list[list[int]], limits: list[int], greedy: bool) -> Iterator[dict[str, Any]]:
        """Completes tokenized prompts with the folder's generation config, or by greedy decoding."""
        generated: dict[int, list[int]] = {}
        order = sorted(range(len(prompts)), key=lambda index: (limits[index], len(prompts[index])))
        while order:
            batch = [index for index in order[:BATCH_SIZE] if limits[index] == limits[order[0]]]
            order = order[len(batch) :]
            tokens = self._generate([prompts[index] for index in batch], limits[batch[0]], greedy)
            generated.update(zip(batch, tokens, strict=True))
            yield {"progress": len(batch)}
        yield {"result": [generated[index] for index in range(len(prompts))]}

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], limit: int, greedy: bool) -> list[list[int]]:
        longest = max(map(len, prompts))
        pad = self.settings.pad_token_id
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        overrides: dict[str, Any] = {"max_new_tokens": limit}
        settings = self.settings
        if greedy:
            settings = transformers.GenerationConfig(
                bos_token_id=settings.bos_token_id, eos_token_id=settings.eos_token_id, pad_token_id=pad
            )
            overrides["do_sample"] = False
        output = self.model.generate(
            input_ids=ids.to(self.device), attention_mask=mask.to(self.device), generation_config=settings, **overrides
        )
        stops = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        return [_through_stop(row, stops) for row in output[:, longest:].tolist()]

    @torch.no_grad()
    def score(self, sequences: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """For each sequence of a prompt and an answer: the log-probability of every token of the answer, and the most
        likely token in its place with its log-probability."""
        scores = []
        for sequence in sequences:
            prompt, answer = sequence["prompt"], sequence["answer"]
            ids = torch.tensor([prompt + answer], device=self.device)
            logits = self.model(ids, logits_to_keep=len(answer) + 1).logits[0, :-1].float()
            log_probs = logits.log_softmax(-1)
            best = log_probs.max(-1)
            own = log_probs.gather(-1, torch.tensor(answer, device=self.device)[:, None])[:, 0]
            scores.append({"own": own.tolist(), "best": best.values.tolist(), "tokens": best.indices.tolist()})
            yield {"progress": 1}
        yield {"result": scores}


def _through_stop(tokens: list[int], stops: list[int]) -> list[int]:
    end = next((index for index, token in enumerate(tokens) if token in stops), len(tokens) - 1)
    return tokens[: end + 1]
