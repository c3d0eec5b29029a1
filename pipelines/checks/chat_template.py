"""Checks of the chat template: it renders the prompts of every task, with the tokenizer or without it (and torch)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.checks.token_ids import check_token_ids
from pipelines.config.job import Job
from pipelines.config.messages import did_you_mean
from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example
from pipelines.data.format_detection import resolve_formats
from pipelines.data.prompt_format import SENTINEL, PromptFormat
from pipelines.errors import ConfigError
from pipelines.modeling.model_folder import read_json

_MESSAGES = {"messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"}
"""Variables of a chat template that no config sets."""


def renderer(job: Job, folder: Path) -> PromptFormat:
    """The prompt format of a job's model, without the tokenizer: it can only render text. Raises ConfigError."""
    try:
        return PromptFormat(TemplateRenderer(folder), job.chat_template_settings())
    except ConfigError as error:
        raise ConfigError(job.problem(str(error), "pipeline", "chat_template")) from None


def check_chat_template(job: Job, prompt_format: PromptFormat, examples: Mapping[str, Example]) -> list[str]:
    """Renders one example per task in the model's chat template; for a task of conversations, one prompt and an answer.

    Returns notes on what the template writes. Raises ConfigError.
    """
    _check_variables(job, prompt_format)
    _render_prompts(
        job,
        prompt_format,
        {
            name: example.conversation if example.turns is None else _probe(job, name)
            for name, example in examples.items()
        },
    )
    return template_notes(job, prompt_format)


def template_notes(job: Job, prompt_format: PromptFormat) -> list[str]:
    """What a user should know about the texts that the chat template writes, as sentences without a full stop."""
    return prompt_format.notes(
        has_system=any(job.system_prompt(name) for name in job.pipeline.tasks),
        has_tools=any(task.tools is not None for task in resolve_formats(job).pipeline.tasks.values()),
    )


def _check_variables(job: Job, prompt_format: PromptFormat) -> None:
    """Raises ConfigError for variables in `chat_template_kwargs` that the chat template does not read."""
    pipeline = job.pipeline
    given: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [
        (("pipeline", "chat_template_kwargs"), pipeline.chat_template_kwargs)
    ]
    given += [
        (("pipeline", "tasks", name, "chat_template_kwargs"), task.chat_template_kwargs)
        for name, task in pipeline.tasks.items()
    ]
    problems = []
    for key, variables in given:
        for name in variables:
            if prompt_format.template is None:
                problems.append(job.problem(f"{'.'.join(key)}: prompts use no chat template; remove it", *key))
                break
            known = prompt_format.template.variable_names
            if name not in known:
                closest = did_you_mean(name, known)
                hint = f"did you mean {closest}?" if closest else f"it reads {', '.join(sorted(known - _MESSAGES))}"
                message = f"{'.'.join(key)}.{name}: the chat template reads no such variable; {hint}"
                problems.append(job.problem(message, *key, name))
    if problems:
        raise ConfigError(problems)


def load_checked_prompt_format(job: Job, folder: Path) -> PromptFormat:
    """The prompt format of a job's model, checked for every task.

    Raises ConfigError, located in the config, for a template or a system turn that cannot be rendered, and for token
    ids that the tokenizer does not have.
    """
    try:
        prompt_format = PromptFormat.from_folder(folder, job.chat_template_settings())
    except ConfigError as error:
        raise ConfigError(job.problem(str(error), *_template_key(job))) from None
    _check_variables(job, prompt_format)
    _render_prompts(job, prompt_format, {name: _probe(job, name) for name in job.pipeline.tasks})
    check_token_ids(job, len(prompt_format.tokenizer))
    return prompt_format


def _probe(job: Job, task: str) -> Conversation:
    """A prompt of a task and its answer, for a template that no row is to be blamed for."""
    return Conversation.single_turn(
        SENTINEL, SENTINEL, job.system_prompt(task), template_kwargs=job.chat_template_kwargs(task)
    )


def _render_prompts(job: Job, prompt_format: PromptFormat, conversations: Mapping[str, Conversation]) -> None:
    """Renders one conversation per task. Raises ConfigError, located in the config."""
    for name, conversation in conversations.items():
        try:
            prompt_format.render(conversation)
        except ChatTemplateError as error:
            has_own_system = job.pipeline.tasks[name].system is not None
            system_key = ("pipeline", "tasks", name, "system") if has_own_system else ("pipeline", "system")
            key = system_key if error.key == "system" else _template_key(job)
            raise ConfigError(job.problem(f"task {name}: {error}", *key)) from None


def _template_key(job: Job) -> tuple[str, ...]:
    """The key that selects the chat template: `chat_template` if it is set, else the model."""
    return ("pipeline", "chat_template") if job.document.raw_text("pipeline", "chat_template") else ("base_model",)


class TemplateRenderer:
    """A stand-in for the tokenizer of a model's folder that has its chat template and cannot tokenize.

    The template is read from the files that transformers reads: chat_template.jinja, else tokenizer_config.json.
    """

    def __init__(self, folder: Path) -> None:
        settings = {
            **_read_object(folder / "special_tokens_map.json"),
            **_read_object(folder / "tokenizer_config.json"),
        }
        self.chat_template = self._read_template(folder, settings.get("chat_template"))
        self._folder = folder
        self.special_tokens_map = {
            key: token for key, value in settings.items() if key.endswith("_token") and (token := _token_text(value))
        }

    def get_added_vocab(self) -> dict[str, int]:
        """The added tokens with their ids, as the tokenizer's method of this name returns them."""
        listed = _read_object(self._folder / "tokenizer.json").get("added_tokens")
        tokens = [token for token in listed if isinstance(token, dict)] if isinstance(listed, list) else []
        return {str(token.get("content")): int(token.get("id", 0)) for token in tokens}

    @property
    def all_special_tokens(self) -> list[str]:
        return list(self.special_tokens_map.values())

    @staticmethod
    def _read_template(folder: Path, in_config: Any) -> str | dict[str, str] | None:
        """One template, several by name, or None."""
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if isinstance(in_config, list):  # [{"name": "default", "template": …}, …]
            return {
                str(entry.get("name")): str(entry.get("template")) for entry in in_config if isinstance(entry, dict)
            }
        return in_config if isinstance(in_config, str) and in_config else None


def _read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; empty if there is no such file or its JSON is not an object."""
    content = read_json(file) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _token_text(value: Any) -> str | None:
    """The text of a special token in tokenizer_config.json: a text, or an object with `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
