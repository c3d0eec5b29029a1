"""Which attention is tried on which device."""

import pytest
import torch

from pipelines.modeling.attention import MASKED, PACKED, PATHS, SHARED, attention_candidates


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "paths"),
    [
        ("cpu", torch.float32, None, ["loop"]),
        ("cuda", torch.bfloat16, (9, 0), ["varlen", "dense", "loop"]),
        ("cuda", torch.float16, (8, 6), ["varlen", "dense", "loop"]),
        ("cuda", torch.float32, (9, 0), ["dense", "loop"]),
        ("cuda", torch.float16, (7, 5), ["dense", "loop"]),
        ("mps", torch.float16, None, ["dense", "loop"]),
    ],
)
def test_the_device_decides_which_paths_are_tried(device, dtype, capability, paths, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    expected = [*(SHARED[path] for path in paths), *(PACKED[path] for path in paths), MASKED]
    assert attention_candidates(torch.device(device), dtype) == expected


@pytest.mark.parametrize("path", PATHS)
def test_a_configured_path_excludes_the_others(path):
    candidates = attention_candidates(torch.device("cpu"), torch.float32, path)
    assert candidates == [SHARED[path], PACKED[path]]
