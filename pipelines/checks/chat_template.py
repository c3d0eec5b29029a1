"""A model folder's chat template, rendered without its tokenizer: what `check` needs in a second, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.config.job import Job
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import ConfigError
from pipelines.modeling.model_folder import read_json


class TemplateRenderer:
    """Stands for a tokenizer where text is rendered and nothing is tokenised.

    The template is found where transformers' tokenizers look: chat_template.jinja, then tokenizer_config.json.
    """

    def __init__(self, folder: Path) -> None:
        config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
        legacy = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").is_file() else {}
        merged = {**(legacy if isinstance(legacy, dict) else {}), **(config if isinstance(config, dict) else {})}
        self.chat_template = self._template(folder, merged.get("chat_template"))
        self.special_tokens = {
            key: _text(value) for key, value in merged.items() if key.endswith("_token") and _text(value)
        }

    @staticmethod
    def _template(folder: Path, in_config: Any) -> str | dict[str, str] | None:
        """One template, or several by name."""
        if (folder / "chat_template.jinja").is_file():
            return (folder / "chat_template.jinja").read_text(encoding="utf-8")
        if isinstance(in_config, list):  # [{"name": "default", "template": …}, …]
            return {str(one.get("name")): str(one.get("template")) for one in in_config if isinstance(one, dict)}
        return in_config if isinstance(in_config, str) and in_config else None

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The text that the template makes of `messages`. Raises jinja2.TemplateError where it refuses them."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self.chat_template["default"] if isinstance(self.chat_template, dict) else self.chat_template
        (text,), _ = render_jinja_template(
            [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **self.special_tokens
        )
        return str(text)


def check_chat_template(job: Job, folder: Path, examples: Mapping[str, Example]) -> None:
    """Renders the first row of each task with the model's own chat template. Raises ConfigError with the line to change."""
    try:
        prompts = PromptFormat(TemplateRenderer(folder), job.pipeline.chat_template)
    except ConfigError as error:
        raise ConfigError(job.problem(str(error), "pipeline", "chat_template")) from None
    prompts.check_tasks(job, {name: example.prompt for name, example in examples.items()})


def _text(value: Any) -> str | None:
    """A special token as tokenizer_config.json has it: a text, or a section with `content`."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
