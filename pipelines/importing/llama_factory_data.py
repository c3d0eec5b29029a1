"""The data sets of a LLaMA-Factory config: dataset_info.json, its formats, and how they are mixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.messages import shorten
from pipelines.errors import ConfigError, Problem
from pipelines.importing.data_options import DataOptions, find_file, task_name, written_path
from pipelines.importing.draft import JobDraft

INFO = "dataset_info.json"
ALPACA = {"prompt": "instruction", "query": "input", "response": "output"}
"""Columns of the format alpaca, where dataset_info.json names none."""
MEDIA = ("images", "videos", "audios")
TAGS = (
    {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"},
    {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
)
"""Tags of conversations that alfine reads as they are."""
MIXES = {"concat": "proportional"}


def put_tasks(draft: JobDraft, options: DataOptions, task_keys: Mapping[str, Any]) -> None:
    """A task for each data set. `task_keys`: further keys of each task."""
    value = draft.get("dataset")
    names = [str(name).strip() for name in (value if isinstance(value, list) else str(value or "").split(","))]
    names = [name for name in names if name]
    if not names:
        draft.refuse("this config names no data set; alfine import reads configs of a training", "dataset")
    info = _dataset_info(draft, names, options)
    for name in names:
        entry = info.get(name)
        task = task_name(name, draft.task_names)
        file = options.file_of(task, len(names))
        if entry is None and (file is None or not isinstance(info, Mapping)):
            draft.refuse(f"{shorten(name)} is not in {INFO}; add it there, or write --data {task}=FILE", "dataset")
        keys = _task_keys(draft, name, entry or {})
        data = file or _data_of(draft, name, task, entry or {})
        section = f"pipeline.tasks.{task}"
        draft.put(f"{section}.data", data, "dataset", comment="--data" if file else f"dataset {name}")
        for key, setting in {**keys, **task_keys}.items():
            draft.put(f"{section}.{key}", setting)
        if entry and "num_samples" in entry:
            draft.note(f"{shorten(name)}: num_samples is left out; put fewer rows into the data file")
    draft.account("pipeline.tasks", "dataset_dir")
    _put_mix(draft, list(draft.task_names))
    draft.drop("write data: {train: …, validation: …} for rows of their own", "eval_dataset")


def _dataset_info(draft: JobDraft, names: list[str], options: DataOptions) -> Mapping[str, Any]:
    """The descriptions of the data sets. Raises ConfigError without them, unless --data names all files."""
    folder = draft.get("dataset_dir", default="data")
    if isinstance(folder, Mapping):
        if not all(isinstance(entry, Mapping) for entry in folder.values()):
            draft.refuse("expected descriptions of data sets", "dataset_dir")
        return folder
    config = Path(draft.file)
    places = (Path(str(folder)) / INFO, Path(INFO))
    path = next((found for place in places if (found := find_file(str(place), config))), None)
    if path is None:
        if all(options.file_of(task_name(name), len(names)) for name in names):
            draft.note(f"without {INFO} the columns of the data are found from their first row")
            return {}
        message = (
            f"there is no {INFO} in {shorten(str(folder))} or next to the config; copy it there, or write --data FILE"
        )
        draft.refuse(message, *(["dataset_dir"] if draft.has("dataset_dir") else ["dataset"]))
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(Problem(f"cannot be read: {error}", str(path))) from None
    if not isinstance(info, dict) or not all(isinstance(entry, dict) for entry in info.values()):
        raise ConfigError(Problem("expected an object of data sets", str(path)))
    draft.info_folder = path.parent
    return info


def _data_of(draft: JobDraft, name: str, task: str, entry: Mapping[str, Any]) -> str:
    """What `data` names: a local file, or a data set of the hub."""
    if isinstance(hub := entry.get("hf_hub_url"), str):
        split, subset = entry.get("split"), entry.get("subset") or entry.get("folder")
        parts = [str(subset)] if subset else [""] if split else []
        return ":".join(["hub", hub, *parts, *([str(split)] if split else [])])
    if isinstance(file := entry.get("file_name"), str) and draft.info_folder is not None:
        return written_path(draft.info_folder / file)
    kind = next(
        (key for key in ("ms_hub_url", "om_hub_url", "script_url", "cloud_file_name") if key in entry), "file_name"
    )
    draft.refuse(f"{shorten(name)}: alfine does not read {kind}; write --data {task}=FILE", "dataset")


def _task_keys(draft: JobDraft, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a task that say which columns it has."""
    columns = entry.get("columns") if isinstance(entry.get("columns"), Mapping) else None
    if entry.get("ranking") or (columns or {}).get("kto_tag"):
        draft.refuse(f"{shorten(name)} has preferences; alfine trains on prompts and completions", "dataset")
    if media := next((key for key in MEDIA if (columns or {}).get(key)), None):
        draft.refuse(f"{shorten(name)} has {media}; alfine trains only on text", "dataset")
    if not entry:
        return {}
    tools = {"tools": columns["tools"]} if columns and columns.get("tools") else {}
    if entry.get("formatting", "alpaca") in ("sharegpt", "openai"):
        _check_tags(draft, name, entry)
        return {"messages": (columns or {}).get("messages") or "conversations", **tools}
    named = {key: (columns or {}).get(key) for key in ("prompt", "query", "response", "system", "history")}
    named = named if columns else {**named, **ALPACA}
    if not named["prompt"] or not named["response"]:
        draft.refuse(
            f"{shorten(name)} has no column for the {'prompt' if not named['prompt'] else 'response'}", "dataset"
        )
    for column in filter(None, named.values()):
        if not str(column).isidentifier():
            draft.refuse(f"{shorten(name)}: {shorten(str(column))} cannot be named in a template; rename it", "dataset")
    keys: dict[str, Any] = {
        "template": "jinja",
        "prompt": _alpaca_prompt(named),
        "completion": f"{{{{ {named['response']} }}}}",
    }
    if named["system"]:
        keys["system"] = f"{{{{ {named['system']} }}}}"
    if named["history"]:
        keys["history"] = named["history"]
    return {**keys, **tools}


def _alpaca_prompt(named: Mapping[str, Any]) -> str:
    """The instruction, and on a line of its own the input, where a row has one."""
    prompt = f"{{{{ {named['prompt']} }}}}"
    query = named["query"]
    return f"{prompt}{{% if {query} %}}\n{{{{ {query} }}}}{{% endif %}}" if query else prompt


def _check_tags(draft: JobDraft, name: str, entry: Mapping[str, Any]) -> None:
    tags = entry.get("tags")
    if not isinstance(tags, Mapping):
        return
    if not any(all(tags.get(key, value) == value for key, value in known.items()) for known in TAGS):
        message = f"{shorten(name)}: its tags are not from/value or role/content; rename the keys of its messages"
        draft.refuse(message, "dataset")


def _put_mix(draft: JobDraft, tasks: list[str]) -> None:
    strategy = str(draft.get("mix_strategy", default="concat"))
    if strategy not in MIXES:
        draft.put("pipeline.mix", "equal", "mix_strategy")
        weights = str(draft.get("interleave_probs", default="")).split(",")
        if len(weights) == len(tasks):
            for task, weight in zip(tasks, weights, strict=True):
                try:
                    draft.put(f"pipeline.tasks.{task}.weight", float(weight), "interleave_probs")
                except ValueError:
                    draft.refuse(f"expected numbers, found {shorten(weight)}", "interleave_probs")
    draft.account("pipeline.mix", "mix_strategy", "interleave_probs")
