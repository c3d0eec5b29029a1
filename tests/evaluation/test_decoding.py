"""Which way tokens are generated in."""

import pytest

from pipelines.config.generation import is_greedy
from pipelines.evaluation.decoding import select_decoding
from tests.evaluation.test_generation import models


@pytest.mark.parametrize(
    "settings, greedy",
    [
        ({}, True),
        ({"do_sample": False, "max_new_tokens": 5, "temperature": 0.3, "top_k": 5}, True),
        ({"num_beams": 1, "repetition_penalty": 1.0}, True),
        ({"do_sample": True}, False),
        ({"num_beams": 2}, False),
        ({"repetition_penalty": 1.2}, False),
        ({"min_new_tokens": 3}, False),
    ],
)
def test_greedy_settings(settings, greedy):
    assert is_greedy(settings) == greedy


def test_decoding_on_a_cpu_is_in_a_pool_unless_requested():
    _, ours = models("llama")
    assert select_decoding(ours, {}, None) == "pool"
    assert select_decoding(ours, {"do_sample": True}, None) == "generate"
    assert select_decoding(models("mistral window")[1], {}, None) == "generate"
    assert select_decoding(ours, {}, "generate") == "generate"
    assert select_decoding(ours, {}, "slots") == "slots"
    assert select_decoding(ours, {"do_sample": True}, "slots") == "generate"
    assert select_decoding(models("mistral window")[1], {}, "slots") == "generate"
