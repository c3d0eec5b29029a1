"""LoRA, quantization and sequence lengths of LLaMA-Factory and axolotl."""

from __future__ import annotations

import re
from typing import Any

from pipelines.config.messages import shorten
from pipelines.importing.draft import JobDraft
from pipelines.importing.target_modules import linear_modules, modules_matching

NAMES_OF_ALL = ("all", "all-linear", "all_linear")
RENAMED = {
    "use_dora": ("use_dora", "peft_use_dora"),
    "use_rslora": ("use_rslora", "peft_use_rslora"),
    "loraplus_lr_ratio": ("loraplus_lr_ratio",),
    "rank_pattern": ("lora_rank_pattern",),
    "alpha_pattern": ("lora_alpha_pattern",),
}
"""Key of the section `adapter` → its names in the source."""


def put_lora(
    draft: JobDraft, rank_key: str, default_rank: int, target_keys: tuple[str, ...], *, target_all: bool
) -> None:
    """The section `adapter` of type lora.

    target_all: whether the source adapts all linear modules, whatever `target_keys` say.
    """
    rank = draft.whole(rank_key, default=default_rank) or default_rank
    draft.put("adapter.type", "lora", "adapter", "finetuning_type")
    draft.put("adapter.r", rank, rank_key, comment=None if draft.has(rank_key) else "default of the source")
    draft.put(
        "adapter.alpha",
        draft.whole("lora_alpha", default=2 * rank),
        "lora_alpha",
        comment=None if draft.has("lora_alpha") else "default of the source: twice the rank",
    )
    draft.put("adapter.dropout", draft.number("lora_dropout", default=0.0), "lora_dropout")
    draft.put("adapter.target_modules", target_modules(draft, target_keys, target_all=target_all), *target_keys)
    for key, names in RENAMED.items():
        for name in names:
            if draft.is_on(name):
                draft.put(f"adapter.{key}", draft.get(name), name)
    if draft.is_on("pissa_init") or str(draft.get("peft_init_lora_weights", default="")).startswith("pissa"):
        draft.put("adapter.init_lora_weights", "pissa", "pissa_init", "peft_init_lora_weights")


def target_modules(draft: JobDraft, keys: tuple[str, ...], *, target_all: bool) -> list[str]:
    """The names of the adapted modules. `all` becomes the names that the family of the base model has."""
    base_model = str(draft.config.get("base_model", ""))
    names: list[str] = []
    for key in keys:
        value = draft.get(key)
        parts = value if isinstance(value, list) else str(value).split(",") if isinstance(value, str) else []
        if isinstance(value, str) and re.search(r"[\\()|\[*]", value):
            names += _matching(draft, key, value, base_model)
            continue
        for name in (str(part).strip() for part in parts):
            names += linear_modules(base_model) if name in NAMES_OF_ALL else [name]
            target_all = target_all or name in NAMES_OF_ALL
    if target_all or not names:
        names += linear_modules(base_model)
        draft.note(
            "all linear modules are named as in models of this family; alfine preview says so if the base has others"
        )
    return list(dict.fromkeys(names))


def _matching(draft: JobDraft, key: str, pattern: str, base_model: str) -> list[str]:
    try:
        names = modules_matching(pattern, base_model)
    except re.error:
        names = []
    draft.change(key, "a regular expression becomes the names of modules, in all layers")
    return names or linear_modules(base_model)


def put_quantization(draft: JobDraft, bits: int | None, *sources: str) -> None:
    """The section `quantization`; only a LoRA can be trained on quantized weights."""
    if bits is None:
        return
    if "adapter" not in draft.config:
        draft.drop("quantized weights cannot be trained; without an adapter all weights are", *sources)
    elif bits not in (4, 8):
        draft.change(sources[0], f"{bits} bits are not available; 4 is written")
        draft.put("quantization.bits", 4, *sources)
    else:
        draft.put("quantization.bits", bits, *sources)


def put_max_length(draft: JobDraft, key: str, default: int | None, excess: str) -> dict[str, Any]:
    """The limit of a row in tokens. Returns the keys of the tasks that say what becomes of longer rows.

    excess: the value of `too_long` that is nearest to what the source does.
    """
    length = draft.whole(key, default=default)
    if length is None:
        return {}
    draft.put(
        "preprocessing.global_max_sequence_length",
        length,
        key,
        comment=None if draft.has(key) else "default of the source",
    )
    return {"too_long": excess}


def refuse_prequantized(draft: JobDraft, base_model: str) -> None:
    """A note on a base model whose name says that its weights are quantized already."""
    if found := re.search(r"gptq|awq|aqlm|nvfp4|mxfp4|-fp8", base_model, re.I):
        draft.note(
            f"{shorten(base_model)}: the name says {found[0]} weights, which alfine does not train; name the model "
            "before its quantization"
        )
