"""Prompt format: how a tokenizer writes prompts and completions as tokens, and which of them are supervised.

Training and evaluation use the same `PromptFormat`, so that a model is prompted with the tokens it was trained on.

Raise PREPARED_FORMAT in stages/digests.py when rows are rendered or tokenized in another way; the digest holds no
version of alfine.
"""

from __future__ import annotations

import itertools
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.chat_template import DEFAULT_CHAT_TEMPLATE, ChatTemplateSettings
from pipelines.data.chat_template import ChatTemplate, ChatTemplateError
from pipelines.data.conversation import Conversation
from pipelines.data.reasoning import ReasoningMarkers, SplitCompletion, split_completion
from pipelines.data.reasoning_markers import find_markers
from pipelines.data.rendering import ConversationRenderer, RenderedConversation
from pipelines.errors import ConfigError
from pipelines.modeling.base_models import context_length, load_tokenizer
from pipelines.modeling.token_sequences import Span, split_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINEL = "alfine"
"""A text whose tokens show whether the tokenizer adds a BOS; the content of a conversation that is a test."""
MAX_MARKER_TOKENS = 64
"""The most tokens of the marker that opens a thought at the end of a prompt."""


@dataclass(frozen=True)
class EncodedExample:
    """The tokens of a prompt, a completion and the end token.

    Attributes:
        input_ids: the tokens of the prompt, then those of the completion and the end token if there is a completion.
        supervised_spans: the half-open ranges (start, end) of tokens that the loss counts, in order. The last is the
            completion with its end token; there is none without a completion.
    """

    input_ids: list[int]
    supervised_spans: list[Span]

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens that the model is prompted with."""
        return split_prompt(self.input_ids, self.supervised_spans)[0]

    @property
    def completion_ids(self) -> list[int]:
        """The tokens of the completion with the end token; empty without a completion."""
        return split_prompt(self.input_ids, self.supervised_spans)[1]


class PromptFormat:
    """The prompt format of one tokenizer.

    With a chat template, the template renders the conversation (see `rendering`); without one, a prompt is the text
    itself. A completion and `end_ids` are supervised.

    Args:
        tokenizer: a tokenizer of transformers, or `checks.chat_template.TemplateRenderer`, which only renders text.
        settings: which chat template is used, with its variables and the date.

    Raises ConfigError if a chat template is required and the tokenizer has none.
    """

    context_length: int = sys.maxsize
    """The most tokens that the model can attend to. Unlimited unless the format comes from a model's folder."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | Any, settings: ChatTemplateSettings = DEFAULT_CHAT_TEMPLATE
    ) -> None:
        has_template = bool(settings.source or getattr(tokenizer, "chat_template", None))
        if settings.enabled and not has_template:
            raise ConfigError("pipeline.chat_template is true, but this model's tokenizer has no chat template")
        self.tokenizer = tokenizer
        uses_template = has_template if settings.enabled is None else settings.enabled
        self.template = ChatTemplate(tokenizer, settings) if uses_template else None
        """The chat template; None if prompts are plain text."""
        self._last_offsets: tuple[str, list[tuple[int, int]]] = ("", [])

    @classmethod
    def from_folder(cls, folder: Path, settings: ChatTemplateSettings = DEFAULT_CHAT_TEMPLATE) -> PromptFormat:
        prompt_format = cls(load_tokenizer(folder), settings)
        prompt_format.context_length = context_length(folder)
        return prompt_format

    @property
    def uses_chat_template(self) -> bool:
        return self.template is not None

    @property
    def rendering_inputs(self) -> list[Any]:
        """What renderings depend on besides the conversation and the model's folder, for the keys of caches."""
        return [] if self.template is None else self.template.inputs

    @cached_property
    def reasoning_markers(self) -> ReasoningMarkers | None:
        """How the model marks its thought; None if neither its template nor its vocabulary has markers."""
        return find_markers(self.template, self.tokenizer.get_added_vocab())

    def split_completion(self, prompt: Sequence[int], tokens: Sequence[int]) -> SplitCompletion:
        """Thought and answer of the tokens of a completion, without its stop token, after the tokens of a prompt."""
        markers = self.reasoning_markers
        in_thought = markers is not None and markers.opened_by(self._decode(prompt[-MAX_MARKER_TOKENS:], False))
        return split_completion(tokens, self._decode, markers, in_thought)

    def _decode(self, tokens: Sequence[int], skip_special_tokens: bool) -> str:
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=skip_special_tokens))

    # --- text ---

    @cached_property
    def renderer(self) -> ConversationRenderer:
        """The renderer of the chat template. There is none for plain prompts."""
        assert self.template is not None
        bos = self.template.variables.get("bos_token")
        return ConversationRenderer(self.template, self._control_tokens, bos, lambda: self.reasoning_markers)

    @property
    def _control_tokens(self) -> list[str]:
        """The texts of all special and added tokens."""
        special = [str(token) for token in getattr(self.tokenizer, "all_special_tokens", [])]
        return list(dict.fromkeys([*special, *self.tokenizer.get_added_vocab()]))

    @cached_property
    def control_tokens(self) -> list[str]:
        """Texts that no row may contain, since they would be tokenized as the control tokens that they name: the
        special tokens, and the added tokens that the chat template writes around turns."""
        special = [str(token) for token in self.tokenizer.all_special_tokens if len(token) > 3]
        skeleton = "" if self.template is None else self.renderer.skeleton
        markers = self.reasoning_markers
        thought = (markers.open, markers.close) if markers is not None else ()
        added = [token for token in self.tokenizer.get_added_vocab() if token in skeleton and token.strip()]
        return [token for token in dict.fromkeys([*special, *added]) if len(token) > 2 and token not in thought]

    def notes(self, has_system: bool = False, has_tools: bool = False) -> list[str]:
        """What a user should know about the texts that the chat template writes, as sentences without a full stop.

        has_system, has_tools: whether conversations have a system turn, and a list of tools.
        """
        return [] if self.template is None else self.renderer.notes(has_system, has_tools)

    def render(self, conversation: Conversation) -> RenderedConversation:
        """The text of a conversation as the model sees it, with special tokens as text (but without a BOS that the
        tokenizer adds), and the supervised spans of its characters. Raises ChatTemplateError."""
        if self.template is not None:
            return self.renderer.render(conversation)
        return _plain_text(conversation, lambda: self.reasoning_markers)

    def render_prompt(self, conversation: Conversation) -> str:
        """The text before the last supervised turn, or before the turn that follows the conversation."""
        rendered = self.render(conversation)
        return rendered.text[: rendered.spans[-1][0]] if rendered.spans else rendered.text

    # --- tokens ---

    @cached_property
    def end_ids(self) -> list[int]:
        """The tokens that end a completion: those of the end of turn in the chat template, else the tokenizer's EOS."""
        ids = [] if self.template is None else self._tokenize(self.renderer.end)
        return ids or [int(self.tokenizer.eos_token_id)]

    @property
    def end_id(self) -> int:
        """The last of `end_ids`, at which generation stops."""
        return self.end_ids[-1]

    @cached_property
    def stop_ids(self) -> list[int]:
        """The tokens that end generation: `end_id` and the tokenizer's EOS."""
        return sorted({self.end_id, int(self.tokenizer.eos_token_id)})

    @cached_property
    def adds_bos(self) -> bool:
        """Whether the tokenizer itself begins texts with its BOS."""
        ids = self.tokenizer(SENTINEL)["input_ids"]
        return bool(ids) and self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a text that is not a prompt: without the chat template, with the BOS if the tokenizer adds one."""
        ids = self._tokenize(text)
        return [int(self.tokenizer.bos_token_id), *ids] if self.adds_bos else ids

    def encode(self, conversation: Conversation) -> EncodedExample:
        """Tokens of one conversation; see `encode_conversations`."""
        return self.encode_conversations([conversation])[0]

    def encode_conversations(self, conversations: Sequence[Conversation]) -> list[EncodedExample]:
        """Tokens of conversations through their last supervised turn, in the same order. Without a supervised turn:
        those of the prompt of the turn that follows.

        The text is tokenized as a whole, and split where its characters are. The tokens of a prompt do not depend on
        the answer: spaces at its end belong to the first token of the answer, and where a token would span both, the
        answer is tokenized by itself.

        Raises ChatTemplateError.
        """
        return self._encode_rendered([self.render(conversation) for conversation in conversations])

    def encode_each(self, conversations: Sequence[Conversation]) -> list[EncodedExample | ChatTemplateError]:
        """As `encode_conversations`, with the error in place of the tokens of a conversation that the chat template
        refuses."""
        rendered: list[RenderedConversation | ChatTemplateError] = []
        for conversation in conversations:
            try:
                rendered.append(self.render(conversation))
            except ChatTemplateError as error:
                rendered.append(error)
        encoded = iter(self._encode_rendered([text for text in rendered if isinstance(text, RenderedConversation)]))
        return [next(encoded) if isinstance(text, RenderedConversation) else text for text in rendered]

    def _encode_rendered(self, rendered: Sequence[RenderedConversation]) -> list[EncodedExample]:
        cuts = [prompt_length(text) for text in rendered]
        prompts = self._with_bos(
            self._tokenize_batch([text.text[:cut] for text, cut in zip(rendered, cuts, strict=True)])
        )
        sequences = iter(self._with_bos(self._tokenize_batch([text.text for text in rendered if text.spans])))
        encoded = []
        for text, cut, prompt in zip(rendered, cuts, prompts, strict=True):
            if not text.spans:
                encoded.append(EncodedExample(prompt, []))
                continue
            sequence = next(sequences)
            if sequence[: len(prompt)] != prompt:
                sequence = [*prompt, *self._tokenize_continuation(text.text[cut:])]
            if text.lacks_end:
                sequence = [*sequence, *self.end_ids]
            earlier = self.token_spans(text.text[:cut], text.spans[:-1], prompt)
            encoded.append(EncodedExample(sequence, [*earlier, (len(prompt), len(sequence))]))
        return encoded

    def token_spans(self, text: str, spans: Sequence[Span], tokens: list[int]) -> list[Span]:
        """The ranges of tokens that hold the ranges of characters `spans`, without leading spaces."""
        if not spans:
            return []
        shift = len(tokens) - len(self._tokenize(text))  # a BOS that the tokenizer adds
        boundaries = sorted({position for start, end in spans for position in (_start(text, start), end)})
        index = {position: shift + self._tokens_before(text, position) for position in boundaries}
        return [(index[_start(text, start)], index[end]) for start, end in spans]

    def _tokens_before(self, text: str, position: int) -> int:
        """The number of tokens of `text` that end at or before the character at `position`."""
        if self.tokenizer.is_fast:
            offsets = self._offsets(text)
            return bisect_right(range(len(offsets)), position, key=lambda token: offsets[token][1])
        whole, before = self._tokenize(text), self._tokenize(text[:position])
        pairs = zip(whole, before, strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        """The characters (start, end) of every token of `text`."""
        if self._last_offsets[0] != text:
            encoding = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
            self._last_offsets = (text, encoding.offsets)
        return self._last_offsets[1]

    def _tokenize_continuation(self, text: str) -> list[int]:
        """Tokens of a text that follows another one: a SentencePiece tokenizer would begin it with a space."""
        for anchor in ("\n", "=", ":", "."):
            before, both = self._tokenize_batch([anchor, anchor + text])
            if both[: len(before)] == before:
                return both[len(before) :]
        return self._tokenize(text)

    def _with_bos(self, sequences: list[list[int]]) -> list[list[int]]:
        """Adds the tokenizer's BOS to plain prompts that do not start with it. A chat template writes its own BOS."""
        bos = self.tokenizer.bos_token_id
        if self.uses_chat_template or not self.adds_bos:
            return sequences
        return [ids if ids[:1] == [bos] else [bos, *ids] for ids in sequences]

    def _tokenize(self, text: str) -> list[int]:
        return self._tokenize_batch([text])[0]

    def _tokenize_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of the texts without special tokens around them."""
        if not self.tokenizer.is_fast:
            return [list(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        # The same as the tokenizer's own call, without masks and offsets, which would take half as long again.
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _start(text: str, position: int) -> int:
    """The position before the spaces that precede it: they belong to the token that follows."""
    return len(text[:position].rstrip(" "))


def prompt_length(rendered: RenderedConversation) -> int:
    """The number of characters of the prompt, without the spaces at its end."""
    position = rendered.spans[-1][0] if rendered.spans else len(rendered.text)
    return _start(rendered.text, position)


def _plain_text(conversation: Conversation, markers: Callable[[], ReasoningMarkers | None]) -> RenderedConversation:
    """The text without a chat template: the user's text, after the system text and a blank line if there is one, and
    the answer directly after it.

    Raises ConfigError for a conversation of several turns, whose roles plain text cannot express.
    """
    turns = conversation.supervised_turns
    before = conversation.messages[: turns[-1]] if turns else conversation.messages
    roles = [message["role"] for message in before]
    if roles not in (["user"], ["system", "user"]) or conversation.tools:
        raise ChatTemplateError("a conversation needs a chat template; write pipeline.chat_template: FILE")
    prompt = "\n\n".join(str(message["content"]) for message in before)
    if not turns:
        return RenderedConversation(prompt)
    answer = conversation.messages[turns[-1]]
    completion = str(answer["content"])
    if thought := str(answer.get("reasoning_content") or ""):
        marks = markers()
        if marks is None:
            raise ChatTemplateError("this model has no marks for reasoning; remove `reasoning`")
        completion = f"{marks.wrap(thought)}{completion}"
    text = f"{prompt}{completion}"
    return RenderedConversation(text, ((len(prompt), len(text)),), lacks_end=True)
