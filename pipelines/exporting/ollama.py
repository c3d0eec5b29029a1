"""Ollama's Modelfile: the chat template in Go's template language, system turn, stop tokens and parameters.

Ollama renders prompts itself and does not execute the Jinja template of a GGUF file. A Go template is written where it
gives the same texts: the parts around the turns are taken from renderings, joined as Ollama would, and compared with
the Jinja template's renderings of other conversations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix

from pipelines.data.chat_template import ChatTemplateError
from pipelines.data.conversation import Message
from pipelines.errors import RunError
from pipelines.exporting.chat_template import ExportTemplate
from pipelines.exporting.folder import generation_config
from pipelines.exporting.source import EvaluatedPrompt, ExportSource

Render = Callable[[Sequence[Message]], str]
"""The prompt of the turn after some messages."""
SYSTEM, FIRST, ANSWER, SECOND = "alfinesystem", "alfinefirst", "alfineanswer", "alfinesecond"
DEFAULT_CONTEXT = 4096
"""Ollama's context in tokens, of which it drops the beginning of longer prompts."""
PARAMETERS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""Settings of a run with the names of Ollama's parameters."""


@dataclass(frozen=True)
class TurnTexts:
    """What a template writes before and after the content of a turn, and before the answer.

    Attributes:
        default_system: the system turn of conversations that have none, None if it writes none.
    """

    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    answer: str
    default_system: str | None = None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as Ollama renders the Go template."""
        if self.default_system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.default_system}, *messages]
        turns = (
            f"{before}{message['content']}{after}"
            for message in messages
            for before, after in [getattr(self, message["role"])]
        )
        return "".join(turns) + self.answer

    def go_template(self) -> str:
        """The template in Go's language, as Ollama documents it (docs/template.md, `.Messages`)."""
        branches = [
            f'{{{{ {keyword} eq .Role "{role}" }}}}{_go_text(before)}{{{{ .Content }}}}{_go_text(after)}'
            for keyword, role, (before, after) in (
                ("if", "system", self.system),
                ("else if", "user", self.user),
                ("else if", "assistant", self.assistant),
            )
        ]
        return f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}{_go_text(self.answer)}"


def _go_text(text: str) -> str:
    """A text outside of Go's actions."""
    return text.replace("{{", '{{ "{{" }}')


def turn_texts(render: Render) -> TurnTexts | None:
    """The texts around turns; None if the template does not write a conversation as its turns one after another."""
    system, first, answer, second = _turns(SYSTEM, FIRST, ANSWER, SECOND)
    try:
        parts = _split(render([system, first, answer, second]), SYSTEM, FIRST, ANSWER, SECOND)
        if parts is None:
            return None
        before, system_to_user, user_to_answer, answer_to_user, end = parts
        alone = render([first]).partition(FIRST)[0]
        user = _user_opening(before, [system_to_user, answer_to_user, alone])
        after_system, after_user = system_to_user.removesuffix(user), commonprefix([user_to_answer, end])
        if after_system and after_user.startswith(after_system):
            after_user = after_system  # all turns have the same end; what follows begins an answer
        texts = TurnTexts(
            system=(before, after_system),
            user=(user, after_user),
            assistant=(user_to_answer[len(after_user) :], answer_to_user.removesuffix(user)),
            answer=end[len(after_user) :],
        )
        if default := alone.removesuffix(user):
            opening, closing = texts.system
            if not default.startswith(opening) or not default.endswith(closing):
                return None
            texts = replace(texts, default_system=default.removeprefix(opening).removesuffix(closing))
        return texts if all(texts.render(turns) == render(turns) for turns in _tests()) else None
    except ChatTemplateError:
        return None


def _turns(system: str, first: str, answer: str, second: str) -> list[Message]:
    roles = ("system", "user", "assistant", "user")
    return [
        {"role": role, "content": content} for role, content in zip(roles, (system, first, answer, second), strict=True)
    ]


def _tests() -> list[list[Message]]:
    """Conversations whose renderings are compared."""
    one, two = _turns("Be brief.", 'What is 2 < 3 & "x"?', "It's true.", "Why?\n\nAnd {{ x }}?"), _turns(*"abcd")
    return [one[1:2], one[:2], one, one[1:], [*one, *two[2:], *one[2:]]]


def _split(text: str, *parts: str) -> list[str] | None:
    """The texts between the parts; None unless each is there once and in this order."""
    between = []
    for part in parts:
        before, found, text = text.partition(part)
        if not found or part in text:
            return None
        between.append(before)
    return [*between, text]


def _user_opening(system_opening: str, before_user: Sequence[str]) -> str:
    """What begins a user turn: the end that all texts before one share, from where it resembles the beginning of a
    system turn. What precedes that ends the turn before."""
    shared = commonprefix([text[::-1] for text in before_user])[::-1]
    lengths = [len(commonprefix([shared[index:], system_opening])) for index in range(len(shared))]
    return shared[lengths.index(max(lengths)) :] if any(lengths) else shared


def modelfile(
    source: ExportSource, template: ExportTemplate, prompts: Sequence[EvaluatedPrompt], gguf: str
) -> tuple[str, list[str]]:
    """The text of the Modelfile for a GGUF file, and notes for the user."""
    notes: list[str] = []
    lines = [f"FROM ./{gguf}"]
    system = _system_prompt(source, notes)
    if template.sources is None:
        lines.append(f"TEMPLATE {_quoted('{{ .Prompt }}')}")
    else:
        texts = turn_texts(_renderer(source, template))
        if texts is None or not _gives_prompts(source, texts, prompts):
            notes.append(
                "Ollama's template language cannot express its chat template exactly, so the Modelfile has none, and "
                "Ollama chooses one by its own rules: prompts may differ from those in training. llama.cpp's own "
                "programs use the right one."
            )
        else:
            lines.append(f"TEMPLATE {_quoted(texts.go_template())}")
            system = texts.default_system if system is None else system
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    lines += _parameters(source)
    return "\n".join(lines) + "\n", notes


def _gives_prompts(source: ExportSource, texts: TurnTexts, prompts: Sequence[EvaluatedPrompt]) -> bool:
    """Whether the texts around turns give the run's prompts. Prompts with tools are not compared: Ollama lists them in
    its own way."""
    return all(
        texts.render(prompt.messages) == prompt.text.removeprefix(_added_bos(source))
        for prompt in prompts
        if not prompt.tools and {message["role"] for message in prompt.messages} <= {"system", "user", "assistant"}
    )


def _added_bos(source: ExportSource) -> str:
    """The text of the token that begins a text, if Ollama adds it, as it does if the GGUF file says so."""
    bos = source.prompt_format.tokenizer.bos_token
    return str(bos) if source.prompt_format.adds_bos and bos else ""


def _renderer(source: ExportSource, template: ExportTemplate) -> Render:
    plain = source.prompt_format.template
    assert plain is not None and template.sources is not None
    sources = template.sources if isinstance(template.sources, str) else template.sources["default"]
    plain = plain.replaced(sources)
    removed = _added_bos(source)

    def render(messages: Sequence[Message]) -> str:
        return plain.render(messages, add_generation_prompt=True).removeprefix(removed)

    return render


def _system_prompt(source: ExportSource, notes: list[str]) -> str | None:
    """The system turn of the run's prompts, if all tasks have the same."""
    job = source.job
    prompts = {task: job.system_prompt(task) for task in job.pipeline.tasks}
    different = set(prompts.values())
    if len(different) > 1:
        notes.append("Its tasks have different system prompts, so the Modelfile has none; pass that of the task.")
        return None
    return different.pop()


def _parameters(source: ExportSource) -> list[str]:
    settings = generation_config(source)
    values: dict[str, object] = {"temperature": 0, "repeat_penalty": 1.0}
    if settings["do_sample"]:
        values["temperature"] = 1.0
    values |= {name: settings[key] for key, name in PARAMETERS.items() if key in settings}
    values["num_predict"] = settings["max_new_tokens"]
    longest = max(len(row.prompt_ids) for row, _ in source.test_rows) + settings["max_new_tokens"]
    if longest > DEFAULT_CONTEXT:
        values["num_ctx"] = source.prompt_format.context_length
    tokenizer = source.prompt_format.tokenizer
    stops = [tokenizer.convert_ids_to_tokens(token) for token in source.prompt_format.stop_ids]
    return [
        *(f"PARAMETER {name} {value}" for name, value in values.items()),
        *(f"PARAMETER stop {_quoted(stop)}" for stop in stops),
    ]


def _quoted(text: str) -> str:
    """A value in a Modelfile. It has no escapes: three quotes end it. Raises RunError."""
    if '"""' in text or text.endswith('"'):
        raise RunError("a Modelfile cannot hold a text with three quotes or with one at its end; use --to gguf")
    return f'"""{text}"""' if "\n" in text or '"' in text else f'"{text}"'
