"""The conversations with the two models of a run. Each model answers on its own answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console.plain_text import count
from pipelines.data.conversation import Message
from pipelines.errors import AlfineError, DataError, RunError
from pipelines.inference.run_models import MODEL_NAMES, ModelName, RunModels
from pipelines.registry import lazy_import
from pipelines.serving.page_run import PageRun
from pipelines.storage.strict_json import dump, parse

if TYPE_CHECKING:
    from pipelines.inference import requests
    from pipelines.inference.engine import GenerationEngine
    from pipelines.inference.prompts import Prompt
    from pipelines.inference.requests import EndReason, GenerationStream
else:
    requests = lazy_import("pipelines.inference.requests")  # torch: seconds that --help does not need


@dataclass
class ChatSettings:
    """How answers are generated.

    Attributes:
        models: the models that answer, in the order in which they are shown.
        system: the system prompt; None for that of the run or of the task.
        max_new_tokens: the limit of an answer; None for that of the run or of the task.
        temperature: 0 for the most likely token at each step.
        seed: the same seed draws the same answers; None draws others each time.
    """

    models: tuple[ModelName, ...] = MODEL_NAMES
    system: str | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


@dataclass
class Answer:
    """The answer of one model, as far as it has been generated. `error` is the reason why there is no more of it."""

    model: ModelName
    limit: int
    text: str = ""
    reasoning: str = ""
    num_tokens: int = 0
    finish_reason: EndReason | None = None
    error: str | None = None

    @property
    def note(self) -> str | None:
        """What a reader should know about the end of the answer."""
        if self.error is not None:
            return self.error
        if self.finish_reason == "cancelled":
            return "stopped"
        if self.finish_reason == "length":
            return f"cut at {count(self.num_tokens, 'token')}; /max N sets the limit"
        is_empty = self.finish_reason is not None and not self.text.strip()
        return "an empty answer, which does not become part of the conversation" if is_empty else None


@dataclass
class Turn:
    """A prompt of the user and the answers to it. `streams` has the models in the order in which they are shown."""

    prompt: str
    streams: dict[ModelName, GenerationStream]
    answers: dict[ModelName, Answer] = field(default_factory=dict)

    def cancel(self) -> None:
        """Ends the answers where they are."""
        for stream in self.streams.values():
            stream.cancel()


class ChatSession:
    """The conversations with the models of a run, one for each model, with the settings of the next answers.

    A conversation belongs to no task, or to the one whose template its first prompt has filled.
    """

    def __init__(self, models: RunModels, engine: GenerationEngine, settings: ChatSettings) -> None:
        self.models, self.engine, self.settings = models, engine, settings
        self.page = PageRun(models.run, models.job)
        self.has_turns = models.prompt_format.uses_chat_template
        """Whether the models see earlier turns: plain text cannot express them."""
        self.reset()

    # --- prompts ---

    def reset(self) -> None:
        """Begins new conversations without a task."""
        self.task: str | None = None
        self._task_system: str | None = None
        self.histories: dict[ModelName, list[Message]] = {name: [] for name in MODEL_NAMES}

    @property
    def system(self) -> str | None:
        """The system turn of the next prompt."""
        if self.settings.system is not None:
            return self.settings.system or None
        return self._task_system if self.task is not None else self.models.job.system_prompt()

    def task_columns(self, name: str) -> list[dict[str, Any]]:
        """The columns that a task's template needs, as `serving.page_run.form_columns`. Raises DataError."""
        self.models.prompts.check_task(name)
        (task,) = (task for task in self.page.description()["tasks"] if task["name"] == name)
        return list(task["columns"])

    def begin_task(self, name: str, row: Mapping[str, Any]) -> Turn:
        """Begins new conversations with the prompt that a row gives in the template of a task.

        The prompt has the tokens of the run's own evaluation. Raises DataError for a row that the task cannot use; the
        conversations then stay as they were.
        """
        prompt = self.models.prompts.from_row(name, row)
        *before, last = self.page.fill(name, row)
        systems = [message["content"] for message in before if message["role"] == "system"]
        before = [message for message in before if message["role"] != "system"]
        is_own = self.settings.system is None and not before
        earlier = self.task, self._task_system, self.histories
        self.reset()
        self.task, self._task_system = name, "\n\n".join(systems) or None
        for history in self.histories.values():
            history += before
        try:
            models = self.settings.models
            prompts = {model: prompt if is_own else self._prompt(model, last["content"]) for model in models}
            return self._submit(last["content"], prompts)
        except AlfineError:
            self.task, self._task_system, self.histories = earlier
            raise

    def join_task(self, name: str) -> None:
        """Begins new conversations of a task whose rows are conversations: with its system turn and its limit."""
        self.models.prompts.check_task(name)
        self.reset()
        self.task, self._task_system = name, self.models.job.system_prompt(name)

    def ask(self, text: str) -> Turn:
        """Sends a prompt to the selected models. Raises AlfineError if one of them cannot answer it."""
        return self._submit(text, {model: self._prompt(model, text) for model in self.settings.models})

    def _prompt(self, model: ModelName, text: str) -> Prompt:
        history = self.histories[model] if self.has_turns else []
        messages = [*self._system_turn(), *history, {"role": "user", "content": text}]
        return self.models.prompts.from_messages(messages, self.task, adds_system=False)

    def _system_turn(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _submit(self, text: str, prompts: Mapping[ModelName, Prompt]) -> Turn:
        settings = self.settings
        turn = Turn(text, {})
        try:
            for model, prompt in prompts.items():
                limit = settings.max_new_tokens or prompt.max_new_tokens
                request = requests.GenerationRequest(
                    model,
                    prompt.ids,
                    limit,
                    settings.temperature,
                    settings.top_p,
                    settings.top_k,
                    settings.repetition_penalty,
                    settings.seed,
                )
                turn.streams[model] = self.engine.submit(request)
                turn.answers[model] = Answer(model, limit)
        except DataError as error:
            turn.cancel()
            more = "; /reset begins a new conversation" if any(self.histories.values()) else ""
            raise DataError(f"{error}{more}") from None
        return turn

    def keep(self, turn: Turn) -> None:
        """Makes the prompt and its answers part of the conversations: each model's own, as far as it has one."""
        for model, answer in turn.answers.items():
            if answer.error is None and answer.text.strip():
                self.histories[model] += [
                    {"role": "user", "content": turn.prompt},
                    {"role": "assistant", "content": answer.text},
                ]

    # --- saving ---

    def rows(self) -> list[dict[str, Any]]:
        """The conversations as rows with the columns `messages` and `model`, without empty ones."""
        system = self._system_turn()
        return [
            {"messages": [*system, *history], "model": model} for model, history in self.histories.items() if history
        ]

    def save(self, path: Path) -> int:
        """Appends the conversations to a JSON Lines file, which a task reads with `messages: messages`.

        Returns their number. Raises RunError if there is none, or for a file of something else.
        """
        rows = self.rows()
        if not rows:
            raise RunError("there is no conversation to save yet")
        if path.suffix.lower() != ".jsonl":
            raise RunError(f"{path}: conversations are saved as JSON Lines; name it .jsonl")
        try:
            _check_holds_conversations(path)
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(dump(row) + "\n" for row in rows))
        except OSError as error:
            raise RunError(f"{path}: {str(error.strerror).lower()}") from None
        return len(rows)


def _check_holds_conversations(path: Path) -> None:
    """Raises RunError for a file that exists and is not one of saved conversations."""
    if not path.exists():
        return
    lines: Sequence[str] = []
    if path.is_file():
        content = path.read_bytes()
        if not content:
            return
        lines = content.decode("utf-8", "replace").split("\n")
    try:
        is_own = lines[-1] == "" and "messages" in parse(lines[0])
    except (ValueError, TypeError, IndexError):
        is_own = False
    if not is_own:
        raise RunError(f"{path} exists and does not hold saved conversations; name another file")


def greeting(session: ChatSession) -> str:
    """What is loaded, how it answers, and where to read on."""
    models, settings = session.models, session.settings
    tuned = "its adapter" if models.tuned.has_adapter else "all weights tuned"
    memory = "one copy of the base's weights" if models.shares_weights else "two models in memory"
    sampling = "the most likely token at each step" if settings.temperature == 0 else "sampled"
    turns = "" if session.has_turns else "; without a chat template: each prompt is answered by itself"
    system = f"\nsystem prompt: {session.system}" if session.system else ""
    return (
        f"{models.run.name}: base {models.job.base_model}, and tuned ({tuned}); {memory}; "
        f"context {models.tuned.context_length:,} tokens{turns}\n"
        f"answered by {' and '.join(settings.models)}; temperature {settings.temperature:g} ({sampling}); "
        f"tasks: {', '.join(models.job.pipeline.tasks)}{system}\n"
        "/help lists the commands; Ctrl-C stops an answer, Ctrl-D ends the chat"
    )
