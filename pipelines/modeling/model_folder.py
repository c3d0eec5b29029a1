"""What a model folder must be before anything loads it: complete, without code, of a kind that can be fine-tuned.

Read without torch and transformers, whose import takes seconds.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.config.messages import shorten
from pipelines.errors import ModelError
from pipelines.modeling.safetensors_header import INDEX, TensorInfo, read_headers

CODE_KEYS = {"auto_map", "custom_pipelines", "custom_generate"}
"""Keys by which a JSON file of a model folder names Python code for transformers to run. An attention that is named as
`owner/name` is code too: a kernel from the hub."""
TABLES = {"tokenizer.json", "vocab.json", INDEX}
"""JSON files that hold tokens or weights and no settings; parsing them takes time."""
WRAPPER_PREFIXES = {
    "_orig_mod.": "a model compiled with torch.compile; save model._orig_mod",
    "module.": "a model inside DataParallel; save model.module",
    "_fsdp_wrapped_module.": "a model inside FSDP; save its full state dict",
    "base_model.model.": "a model inside PEFT; save merge_and_unload() of it",
}
"""Beginnings of weight names that a wrapper leaves, with how to save without it."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
LAYER_NUMBER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def check_model_folder(folder: Path) -> None:
    """Raises ModelError, one line, for the first thing that keeps the folder from being a whole causal language model."""
    if not folder.is_dir():
        cause = "is a file; name the folder that holds it" if folder.exists() else "there is no such folder"
        raise ModelError(f"model {str(folder)!r}: {cause}")
    reject_adapter(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {str(folder)!r} holds no config.json; name a folder saved by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model {str(folder)!r} holds {_no_weights(folder)}")
    _refuse_links_out(folder)
    reject_custom_code(folder)
    config = read_config(folder)
    if not any(path for pattern in ("tokenizer*", "vocab*", "*.model") for path in folder.glob(pattern)):
        raise ModelError(
            f"model {str(folder)!r} holds no tokenizer (tokenizer.json); save it there with save_pretrained"
        )
    _check_kind(folder, config)
    tensors = read_headers(folder)
    _check_names(folder, tensors)
    _check_shapes(folder, config, tensors)


def reject_adapter(folder: Path) -> None:
    """Raises ModelError for an adapter where a model should be, and for one beside a model, which transformers would load
    into the base without a word."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        base = str(config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError, RecursionError):
        base = ""
    if (folder / "config.json").is_file():
        raise ModelError(
            f"model {str(folder)!r} holds an adapter (adapter_config.json) beside the base's weights, which would be loaded into "
            f"the base; name a copy of the folder without the files adapter_*"
        )
    of = f" of {shorten(base)}" if base else ""
    if (folder.parent / "manifest.json").is_file():
        advice = f"write the base as base_model, and pipeline.continue_from: {folder.parent}"
    else:
        advice = (
            f"write base_model: {shorten(base) if base else 'its base'}, or merge the adapter into its base (PEFT's "
        )
        advice += "merge_and_unload), save that with the tokenizer, and name its folder"
    raise ModelError(f"model {str(folder)!r} is an adapter{of} (adapter_config.json), not a model; {advice}")


def _no_weights(folder: Path) -> str:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if not pickled:
        return "no .safetensors file with weights; was the download complete?"
    return (
        f"its weights in {pickled[0]} only, a format (pickle) that can run code when it is opened, so alfine does not; "
        f"where you trust it, save it again with save_pretrained, which writes .safetensors, and name that folder"
    )


def _refuse_links_out(folder: Path) -> None:
    """A link in a stranger's folder may name any file of this machine. The hub's own cache links to the blobs beside it."""
    inside = [
        folder.resolve(),
        *([folder.resolve().parents[1] / "blobs"] if folder.resolve().parent.name == "snapshots" else []),
    ]
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not any(path.resolve().is_relative_to(place) for place in inside):
            raise ModelError(
                f"model {str(folder)!r}: {path.name} is a link to a place outside of it; copy the file there"
            )


def reject_custom_code(folder: Path) -> None:
    """Raises ModelError where a file of the folder (a model's, an adapter's, a tokenizer's) names Python code to run."""
    if (folder / "custom_generate").exists():
        raise _brings_code(folder, "custom_generate/", "delete that folder")
    for path in sorted(folder.glob("*.json")):
        if path.name in TABLES:
            continue
        for key, value in _entries(read_json(path)):
            kernel = key.endswith("attn_implementation") and isinstance(value, str) and "/" in value
            if key in CODE_KEYS or kernel:
                raise _brings_code(folder, path.name, f"take the key {key} out of it")


def _brings_code(folder: Path, name: str, remedy: str) -> ModelError:
    return ModelError(
        f"model {str(folder)!r} brings code of its own ({name}), which alfine does not run; if transformers knows "
        f"the model without it, {remedy}, else take another model"
    )


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of nested mappings with its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner)


def read_json(path: Path) -> Any:
    """Raises ModelError where the file is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(
            f"model {str(path.parent)!r}: its {path.name} is not JSON; download or save it again"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json. Raises ModelError where it is no JSON object."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError(f"model {str(folder)!r}: its config.json is no JSON object; download or save it again")
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model."""
    part = config.get("text_config", config)
    return part if isinstance(part, dict) else config


@cache
def causal_model_types() -> set[str]:
    """The values of `model_type` that transformers has a causal language model for, read out of its source."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], "models", "auto", "modeling_auto.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")], value=ast.Call(args=[names])):
                return {model_type for model_type, _ in ast.literal_eval(names)}
    return set()


def _check_kind(folder: Path, config: dict[str, Any]) -> None:
    model_type, known = config.get("model_type"), causal_model_types()
    if not isinstance(model_type, str):
        raise ModelError(f"model {str(folder)!r}: its config.json names no model_type; download or save it again")
    if known and model_type not in known:
        encoder = bool(config.get("is_encoder_decoder"))
        what = "is an encoder-decoder" if encoder else "this transformers has no causal language model for"
        raise ModelError(
            f"model {str(folder)!r} is of type {model_type}, which {what}; take a causal one, such as a Llama"
        )
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise ModelError(
            f"model {str(folder)!r} holds quantized weights ({method}), which cannot be fine-tuned here; take the model that it "
            f"was made from, and write `quantization: {{bits: 4}}` to load that in 4 bits"
        )


def _check_names(folder: Path, tensors: dict[str, TensorInfo]) -> None:
    for prefix, cause in WRAPPER_PREFIXES.items():
        if tensors and all(name.startswith(prefix) for name in tensors):
            raise ModelError(f"model {str(folder)!r}: its weights' names start with {prefix!r}, those of {cause}")


def _check_shapes(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
    """As far as names tell it; the loader compares every weight."""
    text = text_config(config)
    vocabulary = text.get("vocab_size")
    rows = vocabulary_rows(tensors)
    if isinstance(vocabulary, int) and rows is not None and rows != vocabulary:
        raise ModelError(
            f"model {str(folder)!r}: config.json says vocab_size {vocabulary}, its weights have rows for {rows} tokens; "
            f"download or save both again"
        )
    layers = text.get("num_hidden_layers", text.get("n_layer"))
    held = {int(match[1]) for name in tensors if (match := LAYER_NUMBER.search(name))}
    if text is config and isinstance(layers, int) and held and (missing := sorted(set(range(layers)) - held)):
        raise ModelError(
            f"model {str(folder)!r}: config.json says {layers} layers, its weights have no layer {missing[0]}; "
            f"download or save both again"
        )


def vocabulary_rows(tensors: dict[str, TensorInfo]) -> int | None:
    """The number of tokens that the embedding has a row for; None where its name is not known."""
    shapes = [tensor.shape for name, tensor in tensors.items() if name.endswith(EMBEDDINGS) and len(tensor.shape) == 2]
    return shapes[0][0] if len(shapes) == 1 else None
