"""Text of tokens as they are generated: whole characters, the thought apart from the answer, nothing of a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from pipelines.data.prompt_format import MAX_MARKER_TOKENS, PromptFormat
from pipelines.data.reasoning import ReasoningMarkers

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
MAX_MARKER_LENGTH = 64
"""Characters that a marker of reasoning given by a regular expression may have."""


class IncrementalDecoder:
    """The text that each further token adds.

    What a token adds depends on those before it (spaces of SentencePiece, bytes of one character), so it is the
    difference of two decoded texts, as in Hugging Face's text-generation-inference. Only the last tokens are decoded.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context, self._read = 0, 0

    def push(self, token: int) -> str:
        """The text that is complete with this token; empty while the bytes of a character are incomplete."""
        self._tokens.append(token)
        before, text = self._texts()
        if len(text) <= len(before) or text.endswith(INCOMPLETE):
            return ""
        self._tokens = self._tokens[self._context :]
        self._context, self._read = self._read - self._context, len(self._tokens)
        return text[len(before) :]

    def flush(self) -> str:
        """The text of tokens whose characters stayed incomplete."""
        before, text = self._texts()
        self._context, self._read = 0, len(self._tokens)
        return text[len(before) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._tokens[self._context : self._read]), self._decode(self._tokens[self._context :])


@dataclass
class _Piece:
    """A part of the generated text: as the model wrote it, and without special tokens."""

    raw: str
    visible: str


@dataclass(frozen=True)
class StreamedText:
    """The next characters of the thought and of the answer, and whether a stop text has ended the answer."""

    reasoning: str = ""
    answer: str = ""
    is_stopped: bool = False


class TextStream:
    """Splits the tokens of one completion into its thought and its answer while they are generated.

    The texts are those of `decode_completion` wherever that can be known in time: a model that closes a thought which
    it never opened, or thinks again after text that looked like its answer, has shown that text as its answer.
    """

    def __init__(self, prompt_format: PromptFormat, prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        tokenizer, markers = prompt_format.tokenizer, prompt_format.reasoning_markers

        def decode(skip_special_tokens: bool, tokens: Sequence[int]) -> str:
            return str(tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

        self._markers = markers
        self._raw = IncrementalDecoder(partial(decode, False)) if markers else None
        self._visible = IncrementalDecoder(partial(decode, True))
        self._answer = _AnswerText(stop)
        self._pieces: list[_Piece] = []
        self._state = "answer"
        self._line = ""
        """The last line of what has been taken from the pieces."""
        self._has_thought = self._in_part = False
        """Whether some of the thought has been shown, and some of its present part."""
        self._held_space = ""
        if markers:
            in_thought = markers.opened_by(decode(False, prompt[-MAX_MARKER_TOKENS:]))
            self._state = "thought" if in_thought else "start"

    def push(self, token: int) -> StreamedText:
        """Adds a token that is not a stop token."""
        visible = self._visible.push(token)
        if self._markers is None or self._raw is None:
            return StreamedText("", *self._answer.push(visible))
        raw = self._raw.push(token)
        if raw or visible:
            self._pieces.append(_Piece(raw, visible))
        return self._split(self._markers, is_end=False)

    def finish(self) -> StreamedText:
        """What has been held back, at the end of the completion."""
        visible = self._visible.flush()
        if self._markers is None or self._raw is None:
            answer, is_stopped = self._answer.push(visible)
        else:
            self._pieces.append(_Piece(self._raw.flush(), visible))
            streamed = self._split(self._markers, is_end=True)
            if streamed.is_stopped:
                return streamed
            rest, is_stopped = self._answer.flush()
            return StreamedText(streamed.reasoning, streamed.answer + rest, is_stopped)
        if is_stopped:
            return StreamedText("", answer, True)
        rest, is_stopped = self._answer.flush()
        return StreamedText("", answer + rest, is_stopped)

    # --- thought and answer ---

    def _split(self, markers: ReasoningMarkers, is_end: bool) -> StreamedText:
        reasoning, answer, is_stopped = "", "", False
        is_moving = True
        while is_moving and not is_stopped:
            raw = "".join(piece.raw for piece in self._pieces)
            if self._state == "start":
                is_moving = self._start(markers, raw, is_end)
            elif self._state == "thought":
                more, is_moving = self._think(markers, raw, is_end)
                reasoning += more
            else:
                more, is_moving = self._answer_part(markers, raw, is_end)
                text, is_stopped = self._answer.push(more)
                answer += text
        return StreamedText(reasoning, answer, is_stopped)

    def _start(self, markers: ReasoningMarkers, raw: str, is_end: bool) -> bool:
        """Decides whether the completion begins with a thought; returns whether that is known."""
        if not raw.strip() and not is_end:
            return False
        match = markers.open_pattern.search(raw)
        if match and not raw[: match.start()].strip():
            self._take(match.end())
            self._state = "thought"
            return True
        if not is_end and _may_begin(raw.lstrip(), markers.open, markers.patterns is not None):
            return False
        self._state = "plain answer"
        return True

    def _think(self, markers: ReasoningMarkers, raw: str, is_end: bool) -> tuple[str, bool]:
        """The next part of the thought, and whether the thought has ended."""
        match = markers.either_pattern.search(raw)
        if match:
            text = self._take(match.start())
            self._take(match.end() - match.start())
            if markers.close_pattern.fullmatch(match[0]):
                self._state = "answer"
                self._answer.strip_next(markers)
            return self._thought_text(text, is_last=True), True
        end = len(raw) if is_end else _held_from(raw, [markers.open, markers.close], markers.patterns is not None)
        return self._thought_text(self._take(end), is_last=is_end), False

    def _thought_text(self, text: str, is_last: bool) -> str:
        """The text without white space at the ends of a part of the thought, after a blank line if it is not the first.

        is_last: whether the part ends here.
        """
        text = (self._held_space + text) if self._in_part else text.lstrip()
        shown = text.rstrip()
        self._held_space = "" if is_last else text[len(shown) :]
        if shown and not self._in_part and self._has_thought:
            shown = f"\n\n{shown}"
        self._has_thought |= bool(shown)
        self._in_part = not is_last and (self._in_part or bool(shown))
        return shown

    def _answer_part(self, markers: ReasoningMarkers, raw: str, is_end: bool) -> tuple[str, bool]:
        """The next part of the answer, and whether another thought begins after it."""
        if self._state == "plain answer":
            return self._take(len(raw)), False
        for match in markers.open_pattern.finditer(raw):
            if markers.begins_thought(self._line + raw, len(self._line) + match.start()):
                text = self._take(match.start())
                self._take(match.end() - match.start())
                self._state = "thought"
                return text, True
        end = len(raw) if is_end else _held_from(raw, [markers.open], markers.patterns is not None)
        return self._take(end), False

    def _take(self, length: int) -> str:
        """Removes `length` characters of the raw text and returns what is visible of them."""
        visible, pieces = "", self._pieces
        taken = "".join(piece.raw for piece in pieces)[:length]
        self._line = (self._line + taken).rpartition("\n")[2]
        while pieces and len(pieces[0].raw) <= length:
            piece = pieces.pop(0)
            length -= len(piece.raw)
            visible += piece.visible
            if not length and not (pieces and not pieces[0].raw):
                break
        if length and pieces:
            piece = pieces[0]
            visible += piece.raw[:length]
            pieces[0] = _Piece(piece.raw[length:], piece.raw[length:])
        return visible


class _AnswerText:
    """The answer without the white space and the tags around it, and without a stop text."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [text for text in stop if text]
        self._held = ""
        """Characters that may begin a stop text, or the tag that ends the answer."""
        self._markers: ReasoningMarkers | None = None
        """Set until the first character of an answer after a thought."""
        self._closing_tag: str | None = None
        self._is_stopped = False

    def strip_next(self, markers: ReasoningMarkers) -> None:
        """Leaves out the white space and the opening tag before what comes next, which follows a thought."""
        self._markers = markers

    def push(self, text: str) -> tuple[str, bool]:
        """The characters that can be shown now, and whether a stop text has ended the answer."""
        return self._advance(text, is_end=False)

    def flush(self) -> tuple[str, bool]:
        """The characters held back, at the end of the answer."""
        return self._advance("", is_end=True)

    def _advance(self, text: str, is_end: bool) -> tuple[str, bool]:
        text, self._held = self._held + text, ""
        if self._markers is not None:
            text = text.lstrip()
            tags = self._markers.answer_tags
            if not is_end and (not text or any(opening.startswith(text) for opening, _ in tags)):
                self._held = text
                return "", False
            for opening, closing in tags:
                if opening == self._markers.close or text.startswith(opening):
                    text, self._closing_tag = text.removeprefix(opening).lstrip(), closing
                    break
            self._markers = None
        for stop in self._stop:
            position = text.find(stop)
            if position >= 0:
                text, self._is_stopped = text[:position], True
        end = len(text)
        if self._closing_tag and self._is_stopped | is_end:
            if self._closing_tag in text:
                text = text.rstrip().removesuffix(self._closing_tag).rstrip()
            end = len(text)
        elif not self._is_stopped and not is_end:
            end = min(_held_from(text, self._stop), self._closing_tag_from(text))
            self._held = text[end:]
        return text[:end], self._is_stopped

    def _closing_tag_from(self, text: str) -> int:
        """Where the tag that ends the answer, with the white space before it, begins or may begin."""
        if self._closing_tag is None:
            return len(text)
        position = text.find(self._closing_tag)
        if position < 0:
            position = _held_from(text, [self._closing_tag])
        return len(text[:position].rstrip())


def _held_from(text: str, endings: Sequence[str], is_pattern: bool = False) -> int:
    """Where the longest end of `text` begins that is the beginning of one of `endings`; the length if there is none.

    is_pattern: the endings are examples of longer ones that begin with `<`.
    """
    if is_pattern:
        start = text.find("<", max(0, len(text) - MAX_MARKER_LENGTH))
        return len(text) if start < 0 else start
    longest = max((len(ending) for ending in endings), default=0)
    for start in range(max(0, len(text) - longest + 1), len(text)):
        if any(ending.startswith(text[start:]) for ending in endings):
            return start
    return len(text)


def _may_begin(text: str, marker: str, is_pattern: bool) -> bool:
    """Whether a longer text that begins with `text` may begin with the marker."""
    if is_pattern:
        return text.startswith("<") and len(text) < MAX_MARKER_LENGTH
    return bool(marker) and marker.startswith(text) and text != marker
