"""The sampling of requests that do not say how: that of the run's section `generation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_NEUTRAL: Mapping[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "use_cache": True,
    "min_new_tokens": 0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "typical_p": 1.0,
    "min_p": 0.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
}
_KNOWN = {"do_sample", "max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty"}


@dataclass(frozen=True)
class SamplingDefaults:
    """The settings of a run, as `transformers.GenerationConfig` means them.

    `ignored`: the keys of the section that have an effect in the run and none in the engine.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    ignored: tuple[str, ...] = ()

    @classmethod
    def from_generation(cls, generation: Mapping[str, Any]) -> SamplingDefaults:
        """Those of a section `generation`. Without `do_sample`, the other keys of sampling have no effect there."""
        given = {key: value for key, value in generation.items() if value is not None}
        ignored = tuple(key for key, value in given.items() if key not in _KNOWN and _NEUTRAL.get(key, ...) != value)
        penalty = float(given.get("repetition_penalty", 1))
        if not given.get("do_sample"):
            return cls(repetition_penalty=penalty, ignored=ignored)
        # transformers' own default of top_k is 50.
        return cls(
            float(given.get("temperature", 1)),
            float(given.get("top_p", 1)),
            int(given.get("top_k", 50)),
            penalty,
            ignored,
        )

    def settings(
        self,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
    ) -> dict[str, Any]:
        """The keywords of a GenerationRequest: what a client says, over the defaults.

        A client that sets the temperature does not get the run's `top_p` and `top_k`.
        """
        own_sampling = temperature is not None
        return {
            "temperature": self.temperature if temperature is None else temperature,
            "top_p": top_p if top_p is not None else 1.0 if own_sampling else self.top_p,
            "top_k": top_k if top_k is not None else 0 if own_sampling else self.top_k,
            "repetition_penalty": self.repetition_penalty if repetition_penalty is None else repetition_penalty,
        }
