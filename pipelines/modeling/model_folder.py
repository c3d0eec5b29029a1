"""Checks of a model folder before it is loaded: complete, without custom code, of a type that can be fine-tuned.

They need neither torch nor transformers, which take seconds to import.
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
"""Keys of a model folder's JSON files that name Python code for transformers to execute. An attention implementation
of the form `owner/name` is code too: a kernel from the Hub."""
LARGE_JSON_FILES = {"tokenizer.json", "vocab.json", INDEX}
"""JSON files with tokens or the index of weights, without settings. Parsing them takes time."""
WRAPPER_PREFIXES = {
    "_orig_mod.": "a model compiled with torch.compile; save model._orig_mod",
    "module.": "a model inside DataParallel; save model.module",
    "_fsdp_wrapped_module.": "a model inside FSDP; save its full state dict",
    "base_model.model.": "a model inside PEFT; save merge_and_unload() of it",
}
"""Prefixes of weight names that a wrapper adds, with the wrapper and how to save without it."""
EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight", "tok_embeddings.weight")
LAYER_INDEX = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def check_model_folder(folder: Path) -> None:
    """Raises ModelError, one line, for the first reason why the folder is not a complete causal language model."""
    if not folder.is_dir():
        cause = "is a file; write its folder" if folder.exists() else "there is no such folder"
        raise ModelError(f"model {str(folder)!r}: {cause}")
    reject_adapter(folder)
    if not (folder / "config.json").is_file():
        raise ModelError(f"model {str(folder)!r} has no config.json; write a folder saved by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"model {str(folder)!r} has {_missing_weights(folder)}")
    _reject_outside_links(folder)
    reject_custom_code(folder)
    config = read_config(folder)
    if not any(path for pattern in ("tokenizer*", "vocab*", "*.model") for path in folder.glob(pattern)):
        raise ModelError(f"model {str(folder)!r} has no tokenizer (tokenizer.json); save it there with save_pretrained")
    _check_type(folder, config)
    tensors = read_headers(folder)
    _check_weight_names(folder, tensors)
    _check_shapes(folder, config, tensors)


def reject_adapter(folder: Path) -> None:
    """Raises ModelError for an adapter instead of a model, and for an adapter next to a model, which transformers
    would load into the model without a warning."""
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
            f"model {str(folder)!r} has an adapter (adapter_config.json) next to the base's weights, which would be "
            f"loaded into the base; write a copy of the folder without the files adapter_*"
        )
    of = f" of {shorten(base)}" if base else ""
    if (folder.parent / "manifest.json").is_file():
        advice = f"write the base as base_model, and pipeline.continue_from: {folder.parent}"
    else:
        advice = (
            f"write base_model: {shorten(base) if base else 'its base'}, or merge the adapter into its base (PEFT's "
            f"merge_and_unload), save the result with the tokenizer, and write its folder"
        )
    raise ModelError(f"model {str(folder)!r} is an adapter{of} (adapter_config.json), not a model; {advice}")


def _missing_weights(folder: Path) -> str:
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(pattern))
    if not pickled:
        return "no .safetensors file with weights; was the download complete?"
    return (
        f"its weights only in {pickled[0]}, a pickle file, which can execute code when it is loaded and is not read; "
        f"if you trust it, save the model with save_pretrained, which writes .safetensors, and write that folder"
    )


def _reject_outside_links(folder: Path) -> None:
    """Raises ModelError for symbolic links to files outside the folder: an untrusted folder could expose any file of
    this machine.

    The cache of the Hub links to its own blobs.
    """
    allowed = [folder.resolve()]
    if folder.resolve().parent.name == "snapshots":
        allowed.append(folder.resolve().parents[1] / "blobs")
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not any(path.resolve().is_relative_to(parent) for parent in allowed):
            raise ModelError(
                f"model {str(folder)!r}: {path.name} is a link to a file outside of the folder; copy the file there"
            )


def reject_custom_code(folder: Path) -> None:
    """Raises ModelError if the folder (of a model, an adapter or a tokenizer) names Python code to execute."""
    if (folder / "custom_generate").exists():
        raise _custom_code_error(folder, "custom_generate/", "delete that folder")
    for path in sorted(folder.glob("*.json")):
        if path.name in LARGE_JSON_FILES:
            continue
        for key, value in _nested_items(read_json(path)):
            is_kernel = key.endswith("attn_implementation") and isinstance(value, str) and "/" in value
            if key in CODE_KEYS or is_kernel:
                raise _custom_code_error(folder, path.name, f"remove the key {key} from it")


def _custom_code_error(folder: Path, name: str, remedy: str) -> ModelError:
    return ModelError(
        f"model {str(folder)!r} requires custom code ({name}), which alfine does not execute; if transformers supports "
        f"the model without it, {remedy}, else use another model"
    )


def _nested_items(value: Any) -> Iterator[tuple[str, Any]]:
    """The keys and values of all nested mappings."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key), inner
            yield from _nested_items(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nested_items(inner)


def read_json(path: Path) -> Any:
    """The parsed file. Raises ModelError if it is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(
            f"model {str(path.parent)!r}: its {path.name} is not JSON; download or save it again"
        ) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json. Raises ModelError if it is not a JSON object."""
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise ModelError(f"model {str(folder)!r}: its config.json is not a JSON object; download or save it again")
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that describes the language model."""
    section = config.get("text_config", config)
    return section if isinstance(section, dict) else config


@cache
def causal_model_types() -> set[str]:
    """The values of `model_type` for which transformers has a causal language model, parsed from its source code."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0], "models", "auto", "modeling_auto.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="MODEL_FOR_CAUSAL_LM_MAPPING_NAMES")], value=ast.Call(args=[names])):
                return {model_type for model_type, _ in ast.literal_eval(names)}
    return set()


def _check_type(folder: Path, config: dict[str, Any]) -> None:
    model_type, known_types = config.get("model_type"), causal_model_types()
    if not isinstance(model_type, str):
        raise ModelError(f"model {str(folder)!r}: its config.json has no model_type; download or save it again")
    if known_types and model_type not in known_types:
        is_encoder_decoder = bool(config.get("is_encoder_decoder"))
        reason = (
            "an encoder-decoder" if is_encoder_decoder else "for which this transformers has no causal language model"
        )
        raise ModelError(f"model {str(folder)!r} is of type {model_type}, {reason}; use a causal one, such as a Llama")
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else "unknown"
        raise ModelError(
            f"model {str(folder)!r} has quantized weights ({method}), which cannot be fine-tuned here; use the model "
            f"that was quantized, and write `quantization: {{bits: 4}}` to load it in 4 bits"
        )


def _check_weight_names(folder: Path, tensors: dict[str, TensorInfo]) -> None:
    for prefix, wrapper in WRAPPER_PREFIXES.items():
        if tensors and all(name.startswith(prefix) for name in tensors):
            raise ModelError(
                f"model {str(folder)!r}: its weights' names start with {prefix!r}, like those of {wrapper}"
            )


def _check_shapes(folder: Path, config: dict[str, Any], tensors: dict[str, TensorInfo]) -> None:
    """Compares the config with the shapes of weights whose names are known. The loader compares every weight."""
    text = text_config(config)
    vocab_size = text.get("vocab_size")
    num_embeddings = num_token_embeddings(tensors)
    if isinstance(vocab_size, int) and num_embeddings is not None and num_embeddings != vocab_size:
        raise ModelError(
            f"model {str(folder)!r}: config.json says vocab_size {vocab_size}, its weights have {num_embeddings} token "
            f"embeddings; "
            f"download or save both again"
        )
    layers = text.get("num_hidden_layers", text.get("n_layer"))
    saved_layers = {int(match[1]) for name in tensors if (match := LAYER_INDEX.search(name))}
    missing = sorted(set(range(layers)) - saved_layers) if isinstance(layers, int) and saved_layers else []
    if text is config and missing:
        raise ModelError(
            f"model {str(folder)!r}: config.json says {layers} layers, its weights have no layer {missing[0]}; "
            f"download or save both again"
        )


def num_token_embeddings(tensors: dict[str, TensorInfo]) -> int | None:
    """The number of rows of the embedding matrix; None if no weight, or more than one, has the name of one."""
    shapes = [tensor.shape for name, tensor in tensors.items() if name.endswith(EMBEDDINGS) and len(tensor.shape) == 2]
    return shapes[0][0] if len(shapes) == 1 else None
