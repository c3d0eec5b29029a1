"""The data sets of an axolotl config and their prompt formats."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipelines.config.messages import shorten
from pipelines.importing.data_options import DataOptions, find_file, task_name, written_path
from pipelines.importing.draft import JobDraft

_INSTRUCTION = "Below is an instruction that describes a task"
_INTRO = (
    f"{_INSTRUCTION}{{% if input %}}, paired with an input that provides further context{{% endif %}}. "
    "Write a response that appropriately completes the request."
)
ALPACA_PROMPTS = {
    "alpaca": f"{_INTRO}\n\n### Instruction:\n{{{{ instruction }}}}\n\n"
    "{% if input %}### Input:\n{{ input }}\n\n{% endif %}### Response:\n",
    "alpaca:chat": f"SYSTEM: {_INTRO}\nUSER: {{{{ instruction }}}}\n"
    "{% if input %}{{ input }}\n{% endif %}ASSISTANT:",
}
"""Type of a data set → the prompt that axolotl writes (axolotl/prompters.py), as a Jinja template."""
MESSAGE_TYPES = ("chat_template", "sharegpt", "chat_template.default", "chat_template.argilla")
TEXT_TYPES = ("completion", "pretrain")
KNOWN_MAPPINGS = ({"role": "from", "content": "value"}, {"role": "role", "content": "content"})
"""Mappings of a message's keys that alfine reads as they are."""
KNOWN_ROLES = {"user", "human", "assistant", "gpt", "model", "system", "tool", "observation"}
KNOWN_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Keys of a message whose value alfine reads as the thought before the answer."""
HUB_FILES = ("json", "csv", "parquet", "text", "arrow")


def put_tasks(draft: JobDraft, options: DataOptions, task_keys: Mapping[str, Any]) -> bool:
    """A task for each data set. Returns whether they use a chat template."""
    datasets = draft.items("datasets")
    if not datasets:
        draft.refuse("this config names no data set; alfine import reads configs of a training", "datasets")
    uses_template = False
    for index, dataset in enumerate(datasets):
        if not isinstance(dataset, Mapping) or not isinstance(dataset.get("path"), str):
            draft.refuse("expected path and type", "datasets", index)
        task = task_name(dataset["path"], draft.task_names)
        section = f"pipeline.tasks.{task}"
        file = options.file_of(task, len(datasets))
        keys, is_chat = _format(draft, index, dataset)
        uses_template = uses_template or is_chat
        data_keys = [("datasets", index, key) for key in ("path", "name", "split", "data_files", "ds_type", "revision")]
        draft.put(
            f"{section}.data", file or _data(draft, index, dataset), *data_keys, comment="--data" if file else None
        )
        for key, (value, sources) in keys.items():
            draft.put(f"{section}.{key}", value, *(("datasets", index, source) for source in sources))
        for key, value in task_keys.items():
            draft.put(f"{section}.{key}", value)
        draft.drop("alfine reads every row", ("datasets", index, "shards"), ("datasets", index, "preprocess_shards"))
    if uses_template and any("prompt" in task for task in draft.config["pipeline"]["tasks"].values()):
        draft.note("a job has one chat template for all tasks: prompts of the type alpaca are written inside it")
    draft.drop("write data: {train: …, validation: …} for rows of their own", "test_datasets")
    return uses_template


def _data(draft: JobDraft, index: int, dataset: Mapping[str, Any]) -> Any:
    """What `data` names: a local file or folder, files, or a data set of the hub."""
    path, files = dataset["path"], dataset.get("data_files")
    if path in HUB_FILES and files:
        return files
    if found := find_file(path, draft.path):
        return written_path(found)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", path) is None or re.search(r"\.(jsonl?|csv|parquet|arrow)$", path):
        return path
    revision = f"@{dataset['revision']}" if dataset.get("revision") else ""
    split = str(dataset.get("split") or "")
    if "[" in split:
        draft.change(("datasets", index, "split"), "the whole split is read, not a part of it")
        split = split.partition("[")[0]
    subset = str(dataset.get("name") or "")
    parts = [subset, split] if split else [subset] if subset else []
    return ":".join([f"hub:{path}{revision}", *parts])


def _format(
    draft: JobDraft, index: int, dataset: Mapping[str, Any]
) -> tuple[dict[str, tuple[Any, tuple[str, ...]]], bool]:
    """The keys of the task with the keys that they are made of, and whether the rows are conversations."""
    kind = dataset.get("type")
    if isinstance(kind, Mapping):
        return _custom(draft, index, kind), False
    if kind is None:
        draft.refuse(
            "without a type axolotl reads token ids; alfine reads text, with type: chat_template or alpaca",
            "datasets",
            index,
        )
    name = str(kind)
    if name in MESSAGE_TYPES:
        return _messages(draft, index, dataset), True
    if name in ALPACA_PROMPTS:
        keys = {"template": ("jinja", ("type",)), "prompt": (ALPACA_PROMPTS[name], ("type",))}
        return {**keys, "completion": ("{{ output }}", ("type",))}, False
    if name in TEXT_TYPES:
        draft.refuse("text without a prompt; alfine trains on prompts and completions", "datasets", index, "type")
    known = ", ".join([*ALPACA_PROMPTS, *MESSAGE_TYPES])
    draft.refuse(f"{shorten(name)} has no counterpart; alfine import knows {known}", "datasets", index, "type")


def _messages(draft: JobDraft, index: int, dataset: Mapping[str, Any]) -> dict[str, tuple[Any, tuple[str, ...]]]:
    default = "conversations" if str(dataset.get("type")).startswith("sharegpt") else "messages"
    keys: dict[str, tuple[Any, tuple[str, ...]]] = {
        "messages": (dataset.get("field_messages") or default, ("field_messages", "type"))
    }
    if dataset.get("field_tools"):
        keys["tools"] = (dataset["field_tools"], ("field_tools",))
    here = ("datasets", index)
    mapping = dataset.get("message_property_mappings")
    mapping = mapping if isinstance(mapping, Mapping) else {}
    role = mapping.get("role") or dataset.get("message_field_role")
    content = mapping.get("content") or dataset.get("message_field_content")
    if not any(
        (role or known["role"]) == known["role"] and (content or known["content"]) == known["content"]
        for known in KNOWN_MAPPINGS
    ):
        message = "alfine reads role and content, or from and value; rename the keys of the messages"
        draft.refuse(message, *here, "message_property_mappings")
    draft.account(
        "messages",
        *(
            (*here, key)
            for key in ("message_property_mappings", "message_field_role", "message_field_content", "conversation")
        ),
    )
    trained = dataset.get("roles_to_train")
    if isinstance(trained, list) and not set(map(str, trained)) <= {"assistant", "gpt", "model"}:
        draft.change((*here, "roles_to_train"), "only answers of the assistant are trained")
    draft.account("train_on", (*here, "roles_to_train"))
    if dataset.get("message_field_training") not in (None, "train", "weight"):
        draft.change((*here, "message_field_training"), "alfine reads the keys train and weight of a message")
    draft.account("train_on", (*here, "message_field_training"))
    for key in ("train_on_eos", "train_on_eot"):
        if dataset.get(key) not in (None, "turn"):
            draft.change((*here, key), "the end of every trained turn is trained")
        draft.account("train_on", (*here, key))
    roles = dataset.get("roles")
    names = (
        {str(name) for group in roles.values() if isinstance(group, list) for name in group}
        if isinstance(roles, Mapping)
        else set()
    )
    if names - KNOWN_ROLES:
        others = ", ".join(sorted(names - KNOWN_ROLES))
        draft.change((*here, "roles"), f"alfine knows {', '.join(sorted(KNOWN_ROLES))}; rename {shorten(others)}")
    draft.account("messages", (*here, "roles"))
    _account_for_thoughts(draft, here, dataset)
    if dataset.get("drop_system_message"):
        draft.change((*here, "drop_system_message"), "system turns are kept; remove them from the rows")
    if dataset.get("chat_template"):
        draft.change((*here, "chat_template"), "a job has one chat template, the model's own")
    return keys


def _account_for_thoughts(draft: JobDraft, here: tuple[str, int], dataset: Mapping[str, Any]) -> None:
    """The keys that name the thought of a message, which alfine finds by itself."""
    if dataset.get("field_thinking") not in (None, *KNOWN_THOUGHTS):
        message = f"alfine reads the thought of a message from {', '.join(KNOWN_THOUGHTS)}; rename the key"
        draft.change((*here, "field_thinking"), message)
    draft.account("messages", (*here, "field_thinking"), (*here, "template_thinking_key"))


def _custom(draft: JobDraft, index: int, kind: Mapping[str, Any]) -> dict[str, tuple[Any, tuple[str, ...]]]:
    """A prompt that the config itself describes."""
    fields = {name: str(kind.get(f"field_{name}") or name) for name in ("instruction", "input", "output", "system")}
    for name, column in fields.items():
        if not column.isidentifier():
            message = f"{shorten(column)} cannot be named in a template; rename the column"
            draft.refuse(message, "datasets", index, "type", f"field_{name}")
    template = str(kind.get("format") or "{instruction} {input} ")
    plain = str(kind.get("no_input_format") or "{instruction} ")
    prompt = _as_jinja(template, fields)
    if plain != template and "{input}" in template:
        prompt = f"{{% if {fields['input']} %}}{prompt}{{% else %}}{_as_jinja(plain, fields)}{{% endif %}}"
    keys = {"template": ("jinja", ("type",)), "prompt": (prompt, ("type",))}
    system = kind.get("system_prompt")
    if system:
        keys["prompt"] = (
            _as_jinja(str(kind.get("system_format") or "{system}"), {"system": ""}, str(system)) + prompt,
            ("type",),
        )
    return {**keys, "completion": (f"{{{{ {fields['output']} }}}}", ("type",))}


def _as_jinja(template: str, fields: Mapping[str, str], system: str = "") -> str:
    """A template with {instruction}, {input} and {system} as Jinja."""
    if re.search(r"\{[{%#]", template + system):
        template, system = (re.sub(r"(\{[{%#])", r"{{ '\1' }}", text) for text in (template, system))
    for name, column in fields.items():
        template = template.replace(f"{{{name}}}", f"{{{{ {column} }}}}" if column else system)
    return template
