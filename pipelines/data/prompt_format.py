"""From an example to tokens: the model's own chat template, the end of the turn, what is supervised.

One `PromptFormat` serves training and both completion passes, so that the prompt is the same to the byte.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.messages import shorten
from pipelines.data.token_ids import check_token_ids
from pipelines.errors import ConfigError, Problem
from pipelines.modeling.base_models import context_length, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipelines.config.job import Job

THEIRS = "this model's chat template"
PLAINLY = "set pipeline.chat_template: false to write prompts without it"
SENTINEL = "alfine"
"""Stands for an assistant's answer when the chat template is asked how it ends a turn."""


class ChatTemplateError(ConfigError):
    """A chat template that cannot be rendered. `key` is what to change: `chat_template`, or `system`."""

    def __init__(self, problems: str | Problem, key: str = "chat_template") -> None:
        super().__init__(problems)
        self.key = key


@dataclass(frozen=True)
class Encoded:
    """`input_ids` of prompt, completion and end token; the loss counts `input_ids[supervised_from:]`."""

    input_ids: list[int]
    supervised_from: int

    @property
    def supervised(self) -> list[int]:
        return self.input_ids[self.supervised_from :]


class PromptFormat:
    """How one tokenizer writes a prompt and its completion.

    With a chat template the prompt is one user turn (after a system turn, where one is set) and the opening of
    the assistant's; without one it is the text as it stands. Training supervises the completion and `end_id`.

    Raises ConfigError where the YAML asks for what the template cannot do.
    """

    context_length: int = sys.maxsize
    """Tokens that the model can attend to; known where the format is a folder's."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | Any, chat_template: bool | None = None) -> None:
        has_template = bool(getattr(tokenizer, "chat_template", None))
        if chat_template and not has_template:
            raise ConfigError("pipeline.chat_template is true, but this model's tokenizer has no chat template")
        self.tokenizer = tokenizer
        self.uses_chat_template = has_template if chat_template is None else chat_template
        self._template_affixes: dict[str | None, tuple[str, str] | None] = {}

    @classmethod
    def from_folder(cls, folder: Path, chat_template: bool | None = None) -> PromptFormat:
        prompts = cls(load_tokenizer(folder), chat_template)
        prompts.context_length = context_length(folder)
        return prompts

    @classmethod
    def for_job(cls, job: Job, folder: Path) -> PromptFormat:
        """The format of a job's prompts, tried once for each task. Raises ConfigError with the line to change."""
        try:
            prompts = cls.from_folder(folder, job.pipeline.chat_template)
        except ConfigError as error:
            raise ConfigError(job.problem(str(error), *_template_key(job))) from None
        prompts.check_tasks(job, dict.fromkeys(job.pipeline.tasks, SENTINEL))
        check_token_ids(job, len(prompts.tokenizer))
        return prompts

    def check_tasks(self, job: Job, prompts: Mapping[str, str]) -> None:
        """Renders a prompt of each task. Raises ConfigError with the line to change."""
        for name, prompt in prompts.items():
            task = job.pipeline.tasks[name]
            own = task.system is not None
            try:
                self.render_prompt(prompt, task.system if own else job.pipeline.system)
            except ChatTemplateError as error:
                at_system = ("pipeline", "tasks", name, "system") if own else ("pipeline", "system")
                where = at_system if error.key == "system" else _template_key(job)
                raise ConfigError(job.problem(f"task {name}: {error}", *where)) from None

    # --- text ---

    def render_prompt(self, prompt: str, system: str | None = None) -> str:
        """The prompt as the model sees it, special tokens written out (without a BOS that the tokenizer adds)."""
        if not self.uses_chat_template:
            return f"{system}\n\n{prompt}" if system else prompt
        if system not in self._template_affixes:
            self._template_affixes[system] = self._affixes(system)
        affixes = self._template_affixes[system]
        if affixes is None:
            text = self._render(self._messages(prompt, system), add_generation_prompt=True)
            self._must_hold(text, prompt, "a prompt")
            return text
        return f"{affixes[0]}{prompt}{affixes[1]}"

    def _affixes(self, system: str | None) -> tuple[str, str] | None:
        """What the template puts before and behind a prompt, where that is all it does: rendering each of a million rows
        would take longer than their tokens."""
        text = self._render(self._messages(SENTINEL, system), add_generation_prompt=True)
        self._must_hold(text, SENTINEL, "the prompt")
        if system:
            self._must_hold(text, system, "the system turn", "system")
        turns = [*self._messages("?", system), {"role": "assistant", "content": SENTINEL}]
        self._must_hold(self._render(turns, add_generation_prompt=False), SENTINEL, "the assistant's answer")
        before, _, behind = text.rpartition(SENTINEL)
        for probe in (" \n a <b> {{c}}\n\n ", "\t'd' \"e\" & f "):
            if self._render(self._messages(probe, system), add_generation_prompt=True) != f"{before}{probe}{behind}":
                return None
        return before, behind

    def _must_hold(self, text: str, part: str, what: str, key: str = "chat_template") -> None:
        """A template that wants its messages in another form drops their text without a word."""
        if part.strip() not in text:
            advice = "leave `system` out (write it into the task's prompt), or " if key == "system" else ""
            message = f"this model's chat template drops {what}: its text is not in the result; {advice}{PLAINLY}"
            raise ChatTemplateError(message, key)

    def _messages(self, prompt: str, system: str | None) -> list[dict[str, str]]:
        system_turn = [{"role": "system", "content": system}] if system else []
        return [*system_turn, {"role": "user", "content": prompt}]

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            return self._rendered(messages, add_generation_prompt)
        except Exception as error:  # a template is a program: whatever it raises, TypeError and AttributeError among it
            cause = self._cause(messages, add_generation_prompt, error)
        raise cause from None

    def _rendered(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        whole = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return str(whole)

    def _cause(
        self, messages: list[dict[str, str]], add_generation_prompt: bool, error: Exception
    ) -> ChatTemplateError:
        """Why the template could not be rendered, and what helps."""
        from jinja2 import TemplateError, TemplateSyntaxError, UndefinedError

        said = shorten(" ".join(str(error).split()) or type(error).__name__, 200)
        if isinstance(named := self.tokenizer.chat_template, dict) and "default" not in named:
            return ChatTemplateError(
                f"this model has several chat templates ({', '.join(named)}) and no default; {PLAINLY}"
            )
        if isinstance(error, TemplateSyntaxError):
            return ChatTemplateError(f"{THEIRS} is not valid Jinja (its line {error.lineno}: {said}); {PLAINLY}")
        if messages[0]["role"] == "system" and self._renders(messages[1:], add_generation_prompt):
            advice = "leave `system` out (write it into the task's prompt)"
            return ChatTemplateError(f"{THEIRS} takes no system turn ({said}); {advice}, or {PLAINLY}", "system")
        if isinstance(error, TemplateError) and not isinstance(error, UndefinedError):
            return ChatTemplateError(f"{THEIRS} refuses a user turn and its answer ({said}); {PLAINLY}")
        return ChatTemplateError(f"{THEIRS} fails ({type(error).__name__}: {said}); {PLAINLY}")

    def _renders(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> bool:
        try:
            self._rendered(messages, add_generation_prompt)
        except Exception:
            return False
        return True

    # --- tokens ---

    @cached_property
    def end_id(self) -> int:
        """The token that ends an answer: the template's end of turn, or the tokenizer's EOS."""
        eos = int(self.tokenizer.eos_token_id)
        if not self.uses_chat_template:
            return eos
        messages = [*self._messages("?", None), {"role": "assistant", "content": SENTINEL}]
        ending = self._render(messages, add_generation_prompt=False).rpartition(SENTINEL)[2]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        return next((token for token in self._ids(ending) if token in special), eos)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a completion: the one trained, and the tokenizer's EOS."""
        return sorted({self.end_id, int(self.tokenizer.eos_token_id)})

    @cached_property
    def _adds_bos(self) -> bool:
        ids = self.tokenizer(SENTINEL)["input_ids"]
        return bool(ids) and self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id

    def encode_prompt(self, text: str) -> list[int]:
        """Tokens of a `render_prompt`."""
        return self._with_bos([self._ids(text)])[0]

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a text that is no prompt: no chat template, the tokenizer's BOS once."""
        ids = self._ids(text)
        return [int(self.tokenizer.bos_token_id), *ids] if self._adds_bos else ids

    def encode(self, text: str, completion: str | None) -> Encoded:
        """Tokens of a rendered prompt and its completion."""
        return self.encode_batch([text], [completion])[0]

    def encode_batch(self, texts: Sequence[str], completions: Sequence[str | None]) -> list[Encoded]:
        """Tokens of rendered prompts and their completions, in the same order. Without a completion: the prompt's only.

        The prompt is tokenized by itself, as for generation. The completion is tokenized together with it (by itself, a
        SentencePiece tokenizer would start it with a space), unless tokens would span both.
        """
        prompts = self._with_bos(self._all_ids(texts))
        pairs = zip(texts, completions, strict=True)
        sequences = self._with_bos(self._all_ids([text + (completion or "") for text, completion in pairs]))
        encoded = []
        for prompt, sequence, completion in zip(prompts, sequences, completions, strict=True):
            if completion is None:
                encoded.append(Encoded(prompt, len(prompt)))
                continue
            starts_with_prompt = sequence[: len(prompt)] == prompt
            completion_ids = sequence[len(prompt) :] if starts_with_prompt else self._ids(completion)
            encoded.append(Encoded([*prompt, *completion_ids, self.end_id], len(prompt)))
        return encoded

    def _with_bos(self, rows: list[list[int]]) -> list[list[int]]:
        """A chat template writes its own BOS; a plain prompt gets the tokenizer's, once."""
        bos = self.tokenizer.bos_token_id
        if self.uses_chat_template or not self._adds_bos:
            return rows
        return [ids if ids[:1] == [bos] else [bos, *ids] for ids in rows]

    def _ids(self, text: str) -> list[int]:
        return self._all_ids([text])[0]

    def _all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not self.tokenizer.is_fast:
            return [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        # What the tokenizer's own call does, without masks and offsets, which would take half as long again.
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _template_key(job: Job) -> tuple[str, ...]:
    """The key that decides on the template: chat_template where it is written, else the model that brings it."""
    return ("pipeline", "chat_template") if job.document.written("pipeline", "chat_template") else ("base_model",)
