"""Out-of-memory errors where a test wants them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaModel

MESSAGE = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 15.00 GiB"


class TokenLimit:
    """Makes a forward pass of a Llama with more than `tokens` tokens run out of memory.

    The error is raised after the pass, when hooks have already recorded it. `failures` counts them.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int, error: type[RuntimeError] | None = None) -> None:
        self.failures = 0
        forward = LlamaModel.forward

        def limited_forward(model: LlamaModel, input_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
            output = forward(model, input_ids, **kwargs)
            if input_ids is not None and input_ids.numel() > tokens:
                self.failures += 1
                raise (error or torch.OutOfMemoryError)(MESSAGE)
            return output

        monkeypatch.setattr(LlamaModel, "forward", limited_forward)
