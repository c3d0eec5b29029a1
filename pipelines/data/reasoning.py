"""Reasoning: which markers a model writes around its thought, and where in a completion the answer begins.

A thought stands between an opening and a closing marker, such as `<think>` and `</think>`. The answer is what follows
the last closing marker: models that think in several steps write text between their thoughts.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

_CONTROL_TOKEN = re.compile(r"<[|｜].*|\[[A-Z_]+\]|<unused\d+>.*")


@dataclass(frozen=True)
class ReasoningMarkers:
    """How a model marks its thought.

    Attributes:
        open, close: the markers, without white space around them. `open` is empty if the template writes none.
        before, between: the texts that stand before a thought, and between the thought and its answer: the markers with
            their white space, and what else begins an answer.
        answer_tags: tags that such models may write around the answer.
        is_trainable: false for markers that only some of the models with this vocabulary know.
        patterns: regular expressions of the opening and the closing marker, where completions vary them.
    """

    open: str
    close: str
    before: str
    between: str
    answer_tags: tuple[tuple[str, str], ...] = ()
    is_trainable: bool = True
    patterns: tuple[str, str] | None = None

    def wrap(self, thought: str) -> str:
        """The text that stands before an answer with this thought, for a template that cannot write thoughts."""
        return f"{self.before}{thought}{self.between}"

    @cached_property
    def open_pattern(self) -> re.Pattern[str]:
        """The regular expression of the opening marker; one that never matches if there is none."""
        if self.patterns:
            return re.compile(self.patterns[0])
        return re.compile(re.escape(self.open) if self.open else r"(?!)")  # that never matches

    @cached_property
    def close_pattern(self) -> re.Pattern[str]:
        """The regular expression of the closing marker."""
        return re.compile(self.patterns[1] if self.patterns else re.escape(self.close))

    @cached_property
    def either_pattern(self) -> re.Pattern[str]:
        """The regular expression of either marker."""
        return re.compile(f"{self.open_pattern.pattern}|{self.close_pattern.pattern}")

    def opened_by(self, prompt: str) -> bool:
        """Whether the text of a prompt ends inside a thought, so that the completion begins with one."""
        return any(not prompt[match.end() :].strip() for match in self.open_pattern.finditer(prompt))

    def find_thought(self, text: str, in_thought: bool = False) -> Thought | None:
        """The thought of a completion, None if it has none. `in_thought`: the prompt ends inside a thought.

        The answer follows the last closing marker. An opening marker after that begins another thought, which has not
        ended, if it is a control token or the first on its line: elsewhere the answer mentions it.
        """
        last_close = max(self.close_pattern.finditer(text), key=re.Match.end, default=None)
        end = last_close.end() if last_close else 0
        unfinished = next(
            (match for match in self.open_pattern.finditer(text, end) if self.begins_thought(text, match.start())), None
        )
        # Text before the first thought is part of an answer that the model was writing.
        if last_close is None and not in_thought and (unfinished is None or text[: unfinished.start()].strip()):
            return None
        is_unfinished = unfinished is not None or last_close is None
        stop = len(text) if is_unfinished or last_close is None else last_close.start()
        starts = [0, *(match.end() for match in self.either_pattern.finditer(text, 0, stop))]
        ends = [*(match.start() for match in self.either_pattern.finditer(text, 0, stop)), stop]
        pieces = [(start, end) for start, end in zip(starts, ends, strict=True) if text[start:end].strip()]
        return Thought(pieces, None if is_unfinished else end)

    def begins_thought(self, text: str, start: int) -> bool:
        """Whether an opening marker at `start` of a text begins a thought, rather than being mentioned there."""
        line = text[:start].rpartition("\n")[2]
        return bool(_CONTROL_TOKEN.fullmatch(self.open)) or not line.strip()

    def strip_answer(self, answer: str) -> str:
        """An answer without the white space and the tag before it and, if there is a tag, the tag after it."""
        answer = answer.lstrip()
        for opening, closing in self.answer_tags:
            if opening == self.close or answer.startswith(opening):
                answer = answer.removeprefix(opening).lstrip()
                return answer.rstrip().removesuffix(closing).rstrip() if closing in answer else answer
        return answer


THINK_TAGS = ReasoningMarkers("<think>", "</think>", "<think>\n", "\n</think>\n\n")
"""The markers of most models and data sets."""


@dataclass(frozen=True)
class Thought:
    """A thought in a text: the ranges (start, end) of its characters, without markers, and where the answer begins.

    `answer_start` is None if the thought does not end.
    """

    pieces: Sequence[tuple[int, int]]
    answer_start: int | None


@dataclass(frozen=True)
class SplitCompletion:
    """A completion as thought and answer.

    Attributes:
        answer: the text after the thought; empty if the thought does not end.
        reasoning: the thought, without its markers; None if there is none.
        is_unfinished: whether the thought does not end.
        num_reasoning_tokens: the tokens before the answer, markers included.
    """

    answer: str
    reasoning: str | None = None
    is_unfinished: bool = False
    num_reasoning_tokens: int = 0


def split_completion(
    tokens: Sequence[int],
    decode: Callable[[Sequence[int], bool], str],
    markers: ReasoningMarkers | None,
    in_thought: bool = False,
) -> SplitCompletion:
    """Splits the tokens of a completion, without its stop token.

    Args:
        decode: returns the text of tokens, without special tokens if its second argument is true.
        in_thought: whether the prompt ends inside a thought.
    """
    text = decode(tokens, False) if markers else ""
    thought = markers.find_thought(text, in_thought) if markers else None
    if markers is None or thought is None:
        return SplitCompletion(decode(tokens, True))
    parts = _TextParts(tokens, decode, text)
    reasoning = "\n\n".join(filter(None, (parts.decode(*piece).strip() for piece in thought.pieces)))
    if thought.answer_start is None:
        return SplitCompletion("", reasoning, True, len(tokens))
    answer = markers.strip_answer(parts.decode(thought.answer_start, len(text)))
    return SplitCompletion(answer, reasoning, False, parts.tokens_before(thought.answer_start))


class _TextParts:
    """The decoded text of tokens, whose parts are decoded again without special tokens.

    Tokens are mapped to characters by the lengths of decoded prefixes, each of which is decoded when it is needed: what
    a token adds to the text depends on the tokens before it (SentencePiece, bytes of one character).
    """

    def __init__(self, tokens: Sequence[int], decode: Callable[[Sequence[int], bool], str], text: str) -> None:
        self._tokens, self._decode, self._text = tokens, decode, text

    def _length(self, num_tokens: int) -> int:
        return len(self._decode(self._tokens[:num_tokens], False))

    def tokens_before(self, position: int) -> int:
        """The number of the first tokens whose text has `position` characters or more."""
        return bisect_left(range(len(self._tokens) + 1), position, key=self._length)

    def decode(self, start: int, end: int) -> str:
        """The characters from `start` to `end` without special tokens. A token that reaches over an end is cut."""
        first = self.tokens_before(start)
        last = bisect_right(range(len(self._tokens) + 1), end, key=self._length) - 1
        head, tail = self._length(first), self._length(last)
        if last < first or tail < head:
            return self._text[start:end]
        return self._text[start:head] + self._decode(self._tokens[first:last], True) + self._text[tail:end]


def split_inline_thought(text: str, markers: ReasoningMarkers) -> tuple[str, str] | None:
    """The thought and the answer of a completion in a row that holds both, None if it has no thought.

    The thought is marked as this model does it, or by <think> and </think>, as most data sets do. Raises ValueError for
    a thought that does not end.
    """
    for known in dict.fromkeys((markers, THINK_TAGS)):
        thought = known.find_thought(text)
        if thought is None:
            continue
        if thought.answer_start is None:
            raise ValueError(f"begins a thought with {known.open} that has no {known.close}")
        reasoning = "\n\n".join(text[start:end].strip() for start, end in thought.pieces)
        return reasoning, known.strip_answer(text[thought.answer_start :])
    return None
