"""The markers around a model's thought: those of its chat template, or a pair that published models use."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from pipelines.data.chat_template import ChatTemplate
from pipelines.data.reasoning import ReasoningMarkers
from pipelines.errors import ConfigError

THOUGHT, ANSWER = "alfinethought", "alfineanswer"
"""A thought and an answer whose positions in a rendered conversation show what the template writes around them."""
_MESSAGE_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
"""The keys of a message in which templates look for the thought."""
_THINKING_VARIABLES: dict[str, Any] = {
    **dict.fromkeys(("enable_thinking", "thinking", "reasoning", "add_thoughts", "preserve_thinking"), True),
    "thinking_mode": "enabled",
    "clear_thinking": False,
}
"""Variables by which templates write thoughts that they leave out by default."""
_TAG = r"(?:<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]|◁[^◁▷\s]{1,40}▷)"
_HARMONY_HEADER = r"(?:<\|end\|>)?(?:<\|start\|>assistant)?"


@dataclass(frozen=True)
class _KnownMarkers:
    """A pair of markers that published models use.

    Attributes:
        space: the white space between the markers and the thought.
        gap: the text between the closing marker and the answer.
        patterns: regular expressions of the markers in completions, where they vary.
        tokens: added tokens of a vocabulary that has the markers, if not the markers themselves.
    """

    open: str
    close: str
    space: str = ""
    gap: str = ""
    patterns: tuple[str, str] | None = None
    tokens: tuple[str, ...] = ()
    is_trainable: bool = True

    def markers(self, answer_tags: tuple[tuple[str, str], ...] = ()) -> ReasoningMarkers:
        before, between = f"{self.open}{self.space}", f"{self.space}{self.close}{self.gap}"
        return ReasoningMarkers(self.open, self.close, before, between, answer_tags, self.is_trainable, self.patterns)

    @property
    def regular_expressions(self) -> tuple[str, str]:
        return self.patterns or (re.escape(self.open), re.escape(self.close))


_KNOWN_MARKERS = (
    _KnownMarkers("<think>", "</think>", "\n", "\n\n"),
    _KnownMarkers("[THINK]", "[/THINK]"),
    _KnownMarkers(
        "<|channel|>analysis<|message|>",
        "<|channel|>final<|message|>",
        patterns=(
            rf"{_HARMONY_HEADER}<\|channel\|>analysis[^<]*<\|message\|>",
            rf"{_HARMONY_HEADER}<\|channel\|>final[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>"
            # A tool call is an answer as well; its channel is part of it.
            r"|(?:\A|(?:<\|end\|>)?<\|start\|>assistant)(?=<\|channel\|>commentary)",
        ),
        tokens=("<|channel|>",),
    ),
    _KnownMarkers("<|START_THINKING|>", "<|END_THINKING|>", gap="<|START_RESPONSE|>"),
    _KnownMarkers("<seed:think>", "</seed:think>"),
    _KnownMarkers("<mm:think>", "</mm:think>"),
    _KnownMarkers("<|channel>thought", "<channel|>", "\n"),
    _KnownMarkers("<|thought_start|>", "<|thought_end|>", "\n", "\n"),
    _KnownMarkers("<|begin_of_thought|>", "<|end_of_thought|>", "\n\n", "\n\n"),
    _KnownMarkers("◁think▷", "◁/think▷", "\n", "\n"),
    _KnownMarkers("<longcat_think>", "</longcat_think>", "\n", "\n"),
    _KnownMarkers("<thought>", "</thought>", "\n", "\n\n"),
    _KnownMarkers("<Thought>", "</Thought>", "\n", "\n\n"),
    _KnownMarkers("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]", "\n", "\n"),
    _KnownMarkers("<thinking>", "</thinking>", "\n", "\n\n"),
    _KnownMarkers("<reasoning>", "</reasoning>", "\n", "\n"),
    # Every Gemma 3 has these tokens, but only MedGemma was trained with them.
    _KnownMarkers("<unused94>thought", "<unused95>", "\n", is_trainable=False),
)
_ANSWER_TAGS = (
    ("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    ("<response>", "</response>"),
    ("<answer>", "</answer>"),
    ("<Output>", "</Output>"),
    ("<|begin_of_solution|>", "<|end_of_solution|>"),
    ("[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"),
)


def find_markers(template: ChatTemplate | None, vocabulary: Collection[str]) -> ReasoningMarkers | None:
    """The markers of a model, None if it has none.

    They are those that its template writes around a thought. If it cannot write one, they are a known pair of which a
    marker occurs in the template's text or is an added token of the `vocabulary`.
    """
    sources = _texts(template)
    tags = tuple(pair for pair in _ANSWER_TAGS if any(pair[0] in text for text in (*sources, *vocabulary)))
    markers = _markers_in_rendering(template, tags) if template else None
    if markers is not None:
        return markers
    for known in _KNOWN_MARKERS:
        if any(marker in text for marker in (known.open, known.close) for text in sources):
            return known.markers(tags)
    for known in _KNOWN_MARKERS:
        if any(token in vocabulary for token in (known.open, known.close, *known.tokens)):
            return known.markers(tags)
    return None


def _markers_in_rendering(template: ChatTemplate, tags: tuple[tuple[str, str], ...]) -> ReasoningMarkers | None:
    """The markers around a thought in a conversation that the template renders; None if it writes no thought."""
    user = {"role": "user", "content": "?"}
    answer = {"role": "assistant", "content": ANSWER}
    thinking = {**answer, **dict.fromkeys(_MESSAGE_KEYS, THOUGHT)}
    blocks = [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": ANSWER}]
    for message in (thinking, {**answer, "content": blocks}):
        for kwargs in ({}, _THINKING_VARIABLES):
            try:
                text = template.render([user, message], kwargs=kwargs)
                header = template.render([user], add_generation_prompt=True, kwargs=kwargs)
                plain = template.render([user, answer], kwargs=kwargs)
            except ConfigError:
                continue
            start, end = text.find(THOUGHT), text.rfind(ANSWER)
            # A template that takes content for text writes the list of blocks as it is.
            if 0 <= start < end and "type" not in text[start:end]:
                between = text[text.rindex(THOUGHT, 0, end) + len(THOUGHT) : end]
                return _markers_around(text[:start], between, header, plain, tags)
    return None


def _markers_around(
    text_before: str, between: str, header: str, plain: str, tags: tuple[tuple[str, str], ...]
) -> ReasoningMarkers | None:
    """The markers at the end of `text_before` and in `between`.

    header: the prompt of an answer; plain: the same conversation without a thought.
    """
    # An opening marker may also be part of the prompt only.
    for text in (text_before, header if header.startswith(text_before) else ""):
        for known in _KNOWN_MARKERS:
            opening, closing = known.regular_expressions
            if re.search(rf"(?:{opening})\s*\Z", text) and re.search(closing, between):
                before = known.open + text[len(text.rstrip()) :]
                return replace(known.markers(tags), before=before, between=between, is_trainable=True)
    closing_tag = re.search(_TAG, between)
    close = closing_tag[0] if closing_tag else between.strip()
    if not close:
        return None  # nothing separates a thought from its answer
    rest = text_before.removeprefix(commonprefix([text_before, header]))
    if not rest.strip():
        tag = re.search(rf"{_TAG}\s*\Z", text_before)
        rest = tag[0] if tag and not plain.partition(ANSWER)[0].endswith(tag[0]) else ""
    return ReasoningMarkers(rest.strip(), close, rest.lstrip(), between, tags)


def _texts(template: ChatTemplate | None) -> list[str]:
    """The Jinja texts of a chat template."""
    if template is None:
        return []
    return [template.sources] if isinstance(template.sources, str) else list(template.sources.values())
