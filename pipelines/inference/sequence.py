"""One request while it is decoded: its tokens, its text so far, and when it ends."""

from __future__ import annotations

from dataclasses import replace

import torch

from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import AlfineError
from pipelines.evaluation.completions import Completion, FinishReason, decode_completion
from pipelines.inference.requests import GenerationStream, TextDelta, TokenLogprob
from pipelines.inference.sampling import Sampler
from pipelines.inference.text_stream import TextStream


class ActiveSequence:
    """A request whose tokens are being generated.

    Attributes:
        limit: the most tokens of its completion, within the context.
        generated: the tokens so far.
        has_ended: whether it takes no further tokens.
    """

    def __init__(self, stream: GenerationStream, prompt_format: PromptFormat, limit: int) -> None:
        self.stream, self.prompt_format, self.limit = stream, prompt_format, limit
        self.prompt = stream.request.prompt_ids
        self.generated: list[int] = []
        self.has_ended = False
        self.sampler = Sampler(stream.request)
        self._text = TextStream(prompt_format, self.prompt, stream.request.stop)
        self._shown = ""

    @property
    def total_length(self) -> int:
        """The most tokens of the prompt and its completion."""
        return len(self.prompt) + self.limit

    def choose(self, logits: torch.Tensor) -> tuple[int, TokenLogprob | None]:
        """The next token by the request's sampling, from logits [vocabulary]; see `Sampler.choose`."""
        return self.sampler.choose(logits, [*self.prompt, *self.generated])

    def append(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Adds the next token, and sends what it adds to the text. Ends the sequence if it is the last."""
        if self.stream.is_cancelled:
            self.cancel()
            return
        self.generated.append(token)
        delta = TextDelta(token_ids=(token,), logprobs=() if logprob is None else (logprob,))
        if token in self.prompt_format.stop_ids:
            self._end(delta, "stop")
            return
        text = self._text.push(token)
        self._shown += text.answer
        delta = replace(delta, text=text.answer, reasoning=text.reasoning)
        if text.is_stopped:
            self._end(delta, "stop", is_stopped_by_text=True)
        elif len(self.generated) >= self.limit:
            self._end(delta, "length")
        else:
            self.stream.put(delta)

    def cancel(self) -> None:
        self.has_ended = True
        self.stream.put(TextDelta(finish_reason="cancelled"))

    def fail(self, error: AlfineError) -> None:
        self.has_ended = True
        self.stream.fail(error)

    def _end(self, delta: TextDelta, reason: FinishReason, is_stopped_by_text: bool = False) -> None:
        """Sends the rest of the text, so that all parts together are the answer of `decode_completion`."""
        self.has_ended = True
        if not is_stopped_by_text:
            rest = self._text.finish()
            self._shown += rest.answer
            is_stopped_by_text = rest.is_stopped
            reason = "stop" if is_stopped_by_text else reason
            delta = replace(delta, text=delta.text + rest.answer, reasoning=delta.reasoning + rest.reasoning)
        split, _ = decode_completion(self.prompt_format, self.prompt, self.generated)
        answer = self._shown if is_stopped_by_text else split.answer
        if answer.startswith(self._shown):
            delta = replace(delta, text=delta.text + answer[len(self._shown) :])
        self.stream.completion = Completion(
            answer,
            len(self.generated),
            reason,
            reasoning=split.reasoning,
            reasoning_cut=split.is_unfinished and reason == "length",
            num_reasoning_tokens=split.num_reasoning_tokens,
            tokens=self.generated,
        )
        self.stream.put(replace(delta, finish_reason=reason))
