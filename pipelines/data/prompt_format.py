"""Prompt format: how a tokenizer writes prompts and completions as tokens, and which of them are supervised.

Training and evaluation use the same `PromptFormat`, so that a model is prompted with the tokens it was trained on.

Raise PREPARED_FORMAT in stages/digests.py when rows are rendered or tokenized in another way; the digest holds no
version of alfine.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.config.chat_template import DEFAULT_CHAT_TEMPLATE, ChatTemplateSettings
from pipelines.data.chat_template import ChatTemplate, check_contains
from pipelines.data.conversation import Conversation, Message
from pipelines.data.reasoning import ReasoningMarkers, SplitCompletion, split_completion
from pipelines.data.reasoning_markers import find_markers
from pipelines.errors import ConfigError
from pipelines.modeling.base_models import context_length, load_tokenizer
from pipelines.modeling.token_sequences import Span, split_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SENTINEL = "alfine"
"""A prompt or completion whose position in the rendered chat template shows what the template adds around it."""
MAX_MARKER_TOKENS = 64
"""The most tokens of the marker that opens a thought at the end of a prompt."""
_VERBATIM_TESTS = (" \n a <b> {{c}}\n\n ", "\t'd' \"e\" & f ")
"""Prompts that a template changes if it strips, escapes or parses its messages."""


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

    With a chat template the prompt is one user turn (after a system turn, if there is one) and the start of the
    assistant's; without a chat template it is the text itself. The completion and `end_id` are supervised.

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
        self._affixes_by_system: dict[str | None, tuple[str, str] | None] = {}

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

    def render_prompt(self, conversation: Conversation) -> str:
        """The prompt of a conversation as the model sees it, with special tokens as text (but without a BOS that the
        tokenizer adds): everything before the last supervised turn.

        Raises ChatTemplateError.
        """
        last = conversation.supervised_turns[-1] if conversation.supervised_turns else len(conversation.messages)
        return self._render_before(conversation, last)

    def _render_before(self, conversation: Conversation, turn: int) -> str:
        """The text before the content of an assistant's turn."""
        before = conversation.messages[:turn]
        if self.template is None:
            return _plain_prompt(before)
        system = before[0]["content"] if before[0]["role"] == "system" else None
        if len(before) > 1 + (system is not None) or conversation.tools or conversation.template_kwargs:
            return self._render(before, conversation)
        prompt = before[-1]["content"]
        if system not in self._affixes_by_system:
            self._affixes_by_system[system] = self._template_affixes(system)
        affixes = self._affixes_by_system[system]
        if affixes is not None:
            return f"{affixes[0]}{prompt}{affixes[1]}"
        text = self._render(before)
        check_contains(text, prompt, "a prompt")
        return text

    def _render(
        self, messages: Sequence[Message], conversation: Conversation | None = None, add_generation_prompt: bool = True
    ) -> str:
        assert self.template is not None
        if conversation is None:
            return self.template.render(messages, add_generation_prompt=add_generation_prompt)
        return self.template.render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=conversation.tools,
            kwargs=conversation.template_kwargs,
        )

    def _template_affixes(self, system: str | None) -> tuple[str, str] | None:
        """The texts that the template writes before and after a prompt, or None if it also changes the prompt.

        Adding affixes is faster than rendering: rendering a million rows would take longer than tokenizing them.
        """

        def messages(prompt: str, completion: str | None = None) -> Sequence[Message]:
            return Conversation.single_turn(prompt, completion, system).messages

        text = self._render(messages(SENTINEL))
        check_contains(text, SENTINEL, "the prompt")
        if system:
            check_contains(text, system, "the system turn", "system")
        conversation = self._render(messages("?", SENTINEL), add_generation_prompt=False)
        check_contains(conversation, SENTINEL, "the assistant's answer")
        prefix, _, suffix = text.rpartition(SENTINEL)
        for prompt in _VERBATIM_TESTS:
            if self._render(messages(prompt)) != f"{prefix}{prompt}{suffix}":
                return None
        return prefix, suffix

    # --- tokens ---

    @cached_property
    def end_id(self) -> int:
        """The token that ends a completion: the end of turn in the chat template, else the tokenizer's EOS."""
        eos = int(self.tokenizer.eos_token_id)
        if not self.uses_chat_template:
            return eos
        conversation = self._render(Conversation.single_turn("?", SENTINEL).messages, add_generation_prompt=False)
        suffix = conversation.rpartition(SENTINEL)[2]
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.get_added_vocab().values())
        return next((token for token in self._tokenize(suffix) if token in special), eos)

    @cached_property
    def stop_ids(self) -> list[int]:
        """The tokens that end generation: `end_id` and the tokenizer's EOS."""
        return sorted({self.end_id, int(self.tokenizer.eos_token_id)})

    @cached_property
    def _adds_bos(self) -> bool:
        ids = self.tokenizer(SENTINEL)["input_ids"]
        return bool(ids) and self.tokenizer.bos_token_id is not None and ids[0] == self.tokenizer.bos_token_id

    def encode_text(self, text: str) -> list[int]:
        """Tokens of a text that is not a prompt: without the chat template, with the BOS if the tokenizer adds one."""
        ids = self._tokenize(text)
        return [int(self.tokenizer.bos_token_id), *ids] if self._adds_bos else ids

    def encode(self, conversation: Conversation) -> EncodedExample:
        """Tokens of one conversation; see `encode_conversations`."""
        return self.encode_conversations([conversation])[0]

    def encode_conversations(self, conversations: Sequence[Conversation]) -> list[EncodedExample]:
        """Tokens of conversations through their last supervised turn, in the same order. Without a supervised turn:
        those of the prompt of the turn that follows.

        The prompt is tokenized by itself, as for generation. The completion is tokenized together with it (by itself, a
        SentencePiece tokenizer would start it with a space), unless tokens would span both.

        Raises ChatTemplateError.
        """
        texts, pieces = [], []
        for conversation in conversations:
            prompts, completions = [], []
            for turn in conversation.supervised_turns or (len(conversation.messages),):
                prompts.append(self._render_before(conversation, turn))
                answered = bool(conversation.supervised_turns)
                completions.append(conversation.messages[turn]["content"] if answered else None)
            texts.append(prompts)
            pieces.append(completions)
        flat = [text for prompts in texts for text in prompts]
        encoded = iter(self._encode_batch(flat, [text for completions in pieces for text in completions]))
        results = []
        for prompts in texts:
            turns = [next(encoded) for _ in prompts]
            spans = [span for turn in turns for span in turn.supervised_spans]
            results.append(EncodedExample(turns[-1].input_ids, spans))
        return results

    def _encode_batch(self, texts: Sequence[str], completions: Sequence[str | None]) -> list[EncodedExample]:
        """Tokens of rendered prompts and their completions, in the same order. Without a completion: the prompt's."""
        prompts = self._with_bos(self._tokenize_batch(texts))
        pairs = zip(texts, completions, strict=True)
        sequences = self._with_bos(self._tokenize_batch([text + (completion or "") for text, completion in pairs]))
        encoded = []
        for prompt, sequence, completion in zip(prompts, sequences, completions, strict=True):
            if completion is None:
                encoded.append(EncodedExample(prompt, []))
                continue
            starts_with_prompt = sequence[: len(prompt)] == prompt
            completion_ids = sequence[len(prompt) :] if starts_with_prompt else self._tokenize(completion)
            input_ids = [*prompt, *completion_ids, self.end_id]
            encoded.append(EncodedExample(input_ids, [(len(prompt), len(input_ids))]))
        return encoded

    def _with_bos(self, sequences: list[list[int]]) -> list[list[int]]:
        """Adds the tokenizer's BOS to plain prompts that do not start with it. A chat template writes its own BOS."""
        bos = self.tokenizer.bos_token_id
        if self.uses_chat_template or not self._adds_bos:
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


def _plain_prompt(messages: Sequence[Message]) -> str:
    """The prompt without a chat template: the user's text, after the system text and a blank line if there is one.

    Raises ConfigError for a conversation of several turns, whose roles plain text cannot express.
    """
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["system", "user"]):
        raise ConfigError("a conversation needs a chat template; write pipeline.chat_template: FILE")
    return "\n\n".join(str(message["content"]) for message in messages)
