"""The names of a base model's modules, read from the headers of its weight files, and whether the names in the YAML match them.

PEFT is content if one name of a list matches; a misspelt one beside it is ignored in silence. Here each name must match. No
torch is imported, so `alfine check` can tell. Where transformers renames the weights on loading, the names are known only
when the model is loaded: `pipelines/modeling/adapters.py` asks the same questions then.
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
"""Weight → shape."""

MATRIX_FREE = ("ln_tuning",)
"""Adapter types that take modules without a matrix, such as norms."""


@cache
def defaults() -> dict[str, Any]:
    """`targets`: adapter type → model types for which PEFT knows target modules; `renamed`: model types whose weights get
    other names on loading. Written by `python -m pipelines.training.ludwig_schema`."""
    return dict(json.loads(Path(__file__).with_name("peft_defaults.json").read_text(encoding="utf-8")))


# --- what a folder holds -----------------------------------------------------------------------------


def weight_shapes(folder: Path) -> dict[str, Sequence[int]]:
    """Every weight of a model's or an adapter's folder with its shape. Raises ModelError where a header cannot be read."""
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor.shape for file in files for name, tensor in read_header(file).items()}


# --- whether names match -----------------------------------------------------------------------------


class Modules:
    """The modules of a model that hold weights, by name."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes: dict[str, Sequence[int]] = {}
        for weight, shape in shapes.items():
            module, _, last = weight.rpartition(".")
            if last == "weight" or module not in self.shapes:
                self.shapes[module] = shape
        parts = [module.split(".") for module in self.shapes]
        self.containers = {".".join(one[:depth]) for one in parts for depth in range(1, len(one))} - set(self.shapes)

    def named(self, name: str, places: Iterable[str] | None = None) -> list[str]:
        """The modules that PEFT means by `name`: the last parts of their path, or all of it."""
        places = self.shapes if places is None else places
        # Files and models differ in the first part (`model.`, `transformer.`) of the path.
        return [place for place in places if place == name or place.endswith(f".{name}") or name.endswith(f".{place}")]

    def fitting(self, pattern: str) -> list[str]:
        """The modules that PEFT applies a key of rank_pattern to."""
        return [place for place in self.shapes if re.match(rf"(.*\.)?({pattern})$", place)]

    def matrices(self, under: Iterable[str] | None = None) -> list[str]:
        """The short names of the modules with a matrix, in the model's order, but for those of the vocabulary; `under` these
        modules only."""
        inside = None if under is None else tuple(f"{place}." for place in under)
        matrices = (place for place, shape in self.shapes.items() if len(shape) >= 2)
        names = dict.fromkeys(_short(place) for place in matrices if inside is None or place.startswith(inside))
        return [name for name in names if not _is_vocabulary(name)] or list(names)

    def short_names(self) -> list[str]:
        return list(dict.fromkeys(map(_short, self.shapes)))


def _short(module: str) -> str:
    """`q_proj` of model.layers.0.self_attn.q_proj; a last part that is a number keeps the one before."""
    parts = module.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


def _is_vocabulary(name: str) -> bool:
    """Whether a module's name is that of an embedding or an output layer, which few mean to adapt."""
    return "embed" in name or name in ("wte", "wpe") or _is_head(name)


def _is_head(name: str) -> bool:
    return name in ("lm_head", "embed_out")


def unknown_module_message(key: str, name: str, modules: Modules) -> str:
    """The sentence on a name that no module has."""
    near = did_you_mean(name.rpartition(".")[2], modules.short_names())
    choice = f"did you mean {near}?" if near else f"its matrices are {', '.join(modules.matrices())}"
    return f"{key}: the base has no module {shorten(name)}; {choice}"


def target_message(key: str, name: str, modules: Modules, kind: str) -> str | None:
    """What is wrong with `name` as a target of an adapter of this kind; None where nothing is."""
    if found := modules.named(name):
        if kind not in MATRIX_FREE and all(len(modules.shapes[one]) < 2 for one in found):
            matrices = ", ".join(modules.matrices())
            return f"{key}: {shorten(name)} is no matrix, so {kind} cannot adapt it; the matrices are {matrices}"
        return None
    if blocks := modules.named(name, modules.containers):
        inside = modules.matrices(blocks)
        return f"{key}: {shorten(name)} is a block of modules; name the matrices in it: {', '.join(inside)}"
    return unknown_module_message(key, name, modules)


def name_problems(adapter: Mapping[str, Any], modules: Modules) -> list[tuple[str, str]]:
    """Each name of the section `adapter` that matches nothing, as (its key, what is wrong and what to write)."""
    kind, found = str(adapter.get("type", "lora")), []
    for key in ("target_modules", "feedforward_modules"):
        for name in adapter.get(key) or ():
            found.append((key, target_message(f"adapter.{key}", name, modules, kind)))
    for name in adapter.get("modules_to_save") or ():
        if not modules.named(name) and not modules.named(name, modules.containers):
            found.append(("modules_to_save", unknown_module_message("adapter.modules_to_save", name, modules)))
    targets = {one for name in adapter.get("target_modules") or () for one in modules.named(name)}
    for key in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (adapter.get(key) or {}).items():
            found.append((key, _pattern_problem(f"adapter.{key}", str(pattern), value, modules, targets)))
    return [(key, message) for key, message in found if message]


def _pattern_problem(key: str, pattern: str, value: object, modules: Modules, targets: set[str]) -> str | None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        return f"{key}.{shorten(pattern)}: expected a whole number of at least 1, found {shorten(str(value))}"
    try:
        fitting = modules.fitting(pattern)
    except re.error as error:
        return f"{key}: {shorten(pattern)} is not a regular expression ({error})"
    if not fitting:
        return unknown_module_message(key, pattern, modules)
    if targets and not targets & set(fitting):
        return f"{key}: {shorten(pattern)} is no target of the adapter; add it to target_modules, or take it out"
    return None


def missing_targets_message(kind: str, model_type: str, modules: Modules) -> str:
    """The sentence on a model for which PEFT has no target modules."""
    known = ", ".join(modules.matrices())
    return f"adapter.target_modules is missing, and PEFT has none for {kind} on {model_type}; write some of [{known}]"


def tied_target_message(init: str) -> str:
    """The sentence on an initialisation that takes a part out of a matrix which another module uses too."""
    return (
        f"adapter.init_lora_weights: {init} takes a part out of the matrices of target_modules, and one of them is the base's "
        f"tied embedding and output layer; take it out of target_modules, or write init_lora_weights: default"
    )


def freeze_regex_message(regex: str, trained: Sequence[str], names: Sequence[str]) -> str | None:
    """What is wrong with `layers_to_freeze_regex`. `trained`: weights that would be trained without it; `names`: all weights."""
    matched = [name for name in trained if re.search(regex, name)]
    if not matched:
        others = any(re.search(regex, name) for name in names)
        what = "matches only weights that are not trained anyway" if others else "matches no weight of the model"
        return (
            f"trainer.layers_to_freeze_regex {what}; the trained weights are named like {', '.join(_examples(trained))}"
        )
    if len(matched) == len(trained):
        return f"trainer.layers_to_freeze_regex matches all {len(trained)} trained weights, so nothing would be trained"
    return None


def _examples(names: Sequence[str]) -> list[str]:
    return [names[0], names[-1]] if len(names) > 1 else list(names)


# --- a job and its base ------------------------------------------------------------------------------


def check_module_names(job: Job, folder: Path) -> None:
    """Raises ConfigError for each name of a module in the YAML that the model in `folder` does not have."""
    shapes, model_type = weight_shapes(folder), str(_config(folder).get("model_type", ""))
    if not shapes or model_type in defaults()["renamed"]:
        return
    # An output layer that shares the embedding's matrix is a module, though the file does not have its name.
    head = {} if any(_is_head(name.partition(".")[0]) for name in shapes) else {"lm_head.weight": [0, 0]}
    modules, adapter = Modules({**shapes, **head}), job.adapter
    problems: list[Problem] = []
    if isinstance(adapter, dict):
        kind = str(adapter["type"])
        if not adapter.get("target_modules") and model_type not in defaults()["targets"].get(kind, [model_type]):
            problems.append(job.problem(missing_targets_message(kind, model_type, modules), "adapter"))
        problems += [job.problem(message, "adapter", key) for key, message in name_problems(adapter, modules)]
        init, targets = adapter.get("init_lora_weights"), adapter.get("target_modules") or ()
        if head and init in ("pissa", "olora") and any(_is_head(name.rpartition(".")[2]) for name in targets):
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
    """As Ludwig names them: `model.` before the model's own name, of which some files leave out the first part."""
    if any(
        "." in weight and weight.split(".")[0] in ("model", "transformer", "gpt_neox", "lm_head") for weight in weights
    ):
        return [f"model.{weight}" for weight in weights]
    return [f"model.transformer.{weight}" for weight in weights]
