"""Checks of module names in the config against the base model's modules, which are read from its safetensors headers.

PEFT accepts a list of target modules if one name matches, and ignores a misspelt one. Here every name must match. No
torch is needed, so `alfine check` can do it. If transformers renames weights while loading, module names are known
only for the loaded model; `pipelines/modeling/adapters.py` then runs the same checks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipelines.config.job import Job
from pipelines.config.messages import did_you_mean, shorten
from pipelines.errors import ConfigError, Problem
from pipelines.modeling.safetensors_header import read_header

Shapes = Mapping[str, Sequence[int]]
"""The shape of each weight, by the weight's name."""

NON_MATRIX_ADAPTERS = ("ln_tuning",)
"""Adapter types that adapt modules without a matrix, such as norms."""


@cache
def defaults() -> dict[str, Any]:
    """What PEFT and transformers know of model types: `targets`, the model types with default target modules by
    adapter type, and `renamed`, the model types whose weights are renamed while loading. Written by
    `python -m pipelines.training.ludwig_schema`.
    """
    return dict(json.loads(Path(__file__).with_name("peft_defaults.json").read_text(encoding="utf-8")))


# --- modules of a model ------------------------------------------------------------------------------


def weight_shapes(folder: Path) -> dict[str, Sequence[int]]:
    """The shapes of all weights in the folder of a model or an adapter. Raises ModelError for an unreadable header."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor.shape for file in files for name, tensor in read_header(file).items()}


class Modules:
    """The modules of a model that have weights, by their full names, from the shapes of the weights.

    `shapes`: module → shape of its weight. `containers`: names of modules that contain others.
    """

    def __init__(self, weight_shapes: Shapes) -> None:
        self.shapes: dict[str, Sequence[int]] = {}
        for weight, shape in weight_shapes.items():
            module, _, parameter = weight.rpartition(".")
            if parameter == "weight" or module not in self.shapes:
                self.shapes[module] = shape
        paths = [module.split(".") for module in self.shapes]
        self.containers = {".".join(path[:depth]) for path in paths for depth in range(1, len(path))} - set(self.shapes)

    def match(self, name: str, modules: Iterable[str] | None = None) -> list[str]:
        """The modules (among `modules` if given) that PEFT adapts for the target `name`: their paths end with it."""
        modules = self.shapes if modules is None else modules
        # The first part of a path (`model.`, `transformer.`) differs between files and loaded models.
        return [
            module for module in modules if module == name or module.endswith(f".{name}") or name.endswith(f".{module}")
        ]

    def match_pattern(self, pattern: str) -> list[str]:
        """The modules that a key of `rank_pattern` or `alpha_pattern` applies to. Raises re.error."""
        return [module for module in self.shapes if re.match(rf"(.*\.)?({pattern})$", module)]

    def matrices(self, containers: Iterable[str] | None = None) -> list[str]:
        """The short names of the modules with a matrix, in the model's order; only those inside `containers` if given.

        Embeddings and output layers are left out unless there is nothing else.
        """
        prefixes = None if containers is None else tuple(f"{container}." for container in containers)
        matrices = (module for module, shape in self.shapes.items() if len(shape) >= 2)
        names = dict.fromkeys(
            _short_name(module) for module in matrices if prefixes is None or module.startswith(prefixes)
        )
        return [name for name in names if not _is_embedding_or_head(name)] or list(names)

    def short_names(self) -> list[str]:
        """The short names of all modules, each once."""
        return list(dict.fromkeys(map(_short_name, self.shapes)))


def _short_name(module: str) -> str:
    """`q_proj` for model.layers.0.self_attn.q_proj. If the last part is an index, the part before it is included."""
    path = module.split(".")
    return ".".join(path[-2:]) if path[-1].isdigit() else path[-1]


def _is_embedding_or_head(name: str) -> bool:
    return "embed" in name or name in ("wte", "wpe") or _is_head(name)


def _is_head(name: str) -> bool:
    return name in ("lm_head", "embed_out")


# --- messages ----------------------------------------------------------------------------------------


def unknown_module_message(key: str, name: str, modules: Modules) -> str:
    """The message for a name that no module has."""
    suggestion = did_you_mean(name.rpartition(".")[2], modules.short_names())
    advice = f"did you mean {suggestion}?" if suggestion else f"its matrices are {', '.join(modules.matrices())}"
    return f"{key}: the base has no module {shorten(name)}; {advice}"


def target_message(key: str, name: str, modules: Modules, adapter_type: str) -> str | None:
    """The message for a target `name` that an adapter of type `adapter_type` cannot adapt; None if it can."""
    if targets := modules.match(name):
        if adapter_type in NON_MATRIX_ADAPTERS or any(len(modules.shapes[target]) >= 2 for target in targets):
            return None
        matrices = ", ".join(modules.matrices())
        return f"{key}: {shorten(name)} is not a matrix, so {adapter_type} cannot adapt it; the matrices are {matrices}"
    if containers := modules.match(name, modules.containers):
        matrices = ", ".join(modules.matrices(containers))
        return f"{key}: {shorten(name)} is a block of modules; name the matrices in it: {matrices}"
    return unknown_module_message(key, name, modules)


def name_problems(adapter: Mapping[str, Any], modules: Modules) -> list[tuple[str, str]]:
    """The key and a message for each name in the section `adapter` that matches no module of the right kind."""
    adapter_type = str(adapter.get("type", "lora"))
    messages: list[tuple[str, str | None]] = []
    for key in ("target_modules", "feedforward_modules"):
        for name in adapter.get(key) or ():
            messages.append((key, target_message(f"adapter.{key}", name, modules, adapter_type)))
    for name in adapter.get("modules_to_save") or ():
        if not modules.match(name) and not modules.match(name, modules.containers):
            messages.append(("modules_to_save", unknown_module_message("adapter.modules_to_save", name, modules)))
    targets = {module for name in adapter.get("target_modules") or () for module in modules.match(name)}
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (adapter.get(key) or {}).items():
            messages.append((key, _pattern_message(f"adapter.{key}", str(pattern), value, modules, targets)))
    return [(key, message) for key, message in messages if message]


def _pattern_message(key: str, pattern: str, value: object, modules: Modules, targets: set[str]) -> str | None:
    """The message for an entry of `rank_pattern` or `alpha_pattern` that is invalid or has no effect, or None."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        return f"{key}.{shorten(pattern)}: expected a whole number of at least 1, found {shorten(str(value))}"
    try:
        matching = modules.match_pattern(pattern)
    except re.error as error:
        return f"{key}: {shorten(pattern)} is not a regular expression ({error})"
    if not matching:
        return unknown_module_message(key, pattern, modules)
    if targets and not targets & set(matching):
        return f"{key}: {shorten(pattern)} is not a target of the adapter; add it to target_modules, or remove it"
    return None


def missing_targets_message(adapter_type: str, model_type: str, modules: Modules) -> str:
    """The message for an adapter without target modules on a model for which PEFT has no defaults."""
    matrices = ", ".join(modules.matrices())
    return (
        f"adapter.target_modules is missing, and PEFT has no defaults for {adapter_type} on {model_type}; write some "
        f"of [{matrices}]"
    )


def tied_target_message(init: str) -> str:
    """The message for an initialization that subtracts a part of a matrix which is tied to another module."""
    return (
        f"adapter.init_lora_weights: {init} subtracts a part of the matrices of target_modules, and one of them is the "
        f"base's tied embedding and output layer; remove it from target_modules, or write init_lora_weights: default"
    )


def freeze_regex_message(regex: str, trained: Sequence[str], names: Sequence[str]) -> str | None:
    """The message for a `layers_to_freeze_regex` that freezes none or all trained weights; None if it is fine.

    `trained`: the names of the weights that would be trained without it. `names`: those of all weights.
    """
    matched = [name for name in trained if re.search(regex, name)]
    if not matched:
        matches_untrained = any(re.search(regex, name) for name in names)
        reason = "matches only weights that are not trained" if matches_untrained else "matches no weight of the model"
        examples = dict.fromkeys((trained[0], trained[-1]))
        return f"trainer.layers_to_freeze_regex {reason}; the trained weights are named like {', '.join(examples)}"
    if len(matched) == len(trained):
        return f"trainer.layers_to_freeze_regex matches all {len(trained)} trained weights, so nothing would be trained"
    return None


# --- a job and its base model ------------------------------------------------------------------------


def check_module_names(job: Job, folder: Path) -> None:
    """Raises ConfigError with a problem for each module name in the config that the model in `folder` does not have."""
    shapes, model_type = weight_shapes(folder), str(_config(folder).get("model_type", ""))
    if not shapes or model_type in defaults()["renamed"]:
        return
    # A tied output layer is a module, but the file does not have its weight.
    is_tied = not any(_is_head(name.partition(".")[0]) for name in shapes)
    modules, adapter = Modules({**shapes, "lm_head.weight": [0, 0]} if is_tied else shapes), job.adapter
    problems: list[Problem] = []
    if isinstance(adapter, dict):
        adapter_type = str(adapter["type"])
        if not adapter.get("target_modules") and model_type not in defaults()["targets"].get(
            adapter_type, [model_type]
        ):
            problems.append(job.problem(missing_targets_message(adapter_type, model_type, modules), "adapter"))
        problems += [job.problem(message, "adapter", key) for key, message in name_problems(adapter, modules)]
        init, targets = adapter.get("init_lora_weights"), adapter.get("target_modules") or ()
        if is_tied and init in ("pissa", "olora") and any(_is_head(name.rpartition(".")[2]) for name in targets):
            problems.append(job.problem(tied_target_message(init), "adapter", "init_lora_weights"))
    elif regex := job.trainer.get("layers_to_freeze_regex"):
        names = _full_names(list(shapes))
        if message := freeze_regex_message(regex, names, names):
            problems.append(job.problem(message, "trainer", "layers_to_freeze_regex"))
    if problems:
        raise ConfigError(problems)


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _full_names(weights: Sequence[str]) -> list[str]:
    """The weights' names in Ludwig: `model.` and the full name, of which some files leave out the first part."""
    prefixes = ("model.", "transformer.", "gpt_neox.", "lm_head.")
    if any(weight.startswith(prefixes) for weight in weights):
        return [f"model.{weight}" for weight in weights]
    return [f"model.transformer.{weight}" for weight in weights]
