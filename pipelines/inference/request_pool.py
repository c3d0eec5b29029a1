"""The requests of one model that are decoded together: each takes the next token by its own sampling."""

from __future__ import annotations

from pipelines.evaluation.slot_pool import SlotPool
from pipelines.inference.sequence import ActiveSequence


class RequestPool(SlotPool[ActiveSequence]):
    """Slots of requests, which leave when they have ended or were cancelled."""

    def step(self) -> None:
        """Generates the next token of every sequence, and removes those that have ended."""
        self._remove_ended()
        if not self.sequences:
            return
        logits = self.next_logits()
        most_likely = logits.argmax(-1).tolist()
        for index, sequence in enumerate(self.sequences):
            if sequence.sampler.needs_logits:
                sequence.append(*sequence.choose(logits[index]))
            else:
                sequence.append(most_likely[index])
        self._remove_ended()

    def _remove_ended(self) -> None:
        for index in reversed(range(len(self.sequences))):
            sequence = self.sequences[index]
            if sequence.stream.is_cancelled and not sequence.has_ended:
                sequence.cancel()
            if sequence.has_ended:
                self.remove(index)
