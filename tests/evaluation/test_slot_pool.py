"""The slots: every supported architecture, slots that are filled again, and models that are refused."""

from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import repeat_kv

from pipelines.evaluation.generation import supports_packed_prefill
from pipelines.evaluation.slot_pool import SlotLayer, SlotPool, supports_slots
from pipelines.modeling.decode_attention import SharedPrefix, decode_attention
from tests.evaluation.test_generation import generate_alone, models, prompts
from tests.modeling.test_packing import ARCHITECTURES


@dataclass
class Sequence:
    prompt: list[int]
    generated: list[int] = field(default_factory=list)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_with_packed_prefill_are_decoded_in_slots(architecture):
    _, ours = models(architecture)
    assert supports_slots(ours) == supports_packed_prefill(ours)


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt2", "phi"])
@torch.inference_mode()
def test_sequences_that_come_and_go_have_the_tokens_of_generate(architecture):
    plain, ours = models(architecture)
    waiting = [Sequence(prompt) for prompt in prompts((7, 12, 1, 3, 9, 30, 2))]
    everyone, pool, lengths = list(waiting), SlotPool(ours, 80), [20, 3, 25, 9, 14, 6, 11]
    while waiting or pool.sequences:
        joining, waiting = waiting[:2], waiting[2:]
        pool.add(joining)
        for _ in range(3):
            for one, row in zip(pool.sequences, pool.next_logits(), strict=True):
                one.generated.append(int(row.argmax()))
        for index in reversed(range(len(pool.sequences))):
            if len(pool.sequences[index].generated) >= lengths[everyone.index(pool.sequences[index])]:
                pool.remove(index)
    assert pool.allocated == 0
    for one, length in zip(everyone, lengths, strict=True):
        expected = generate_alone(plain, one.prompt, length, do_sample=False, min_new_tokens=length)
        # Stop tokens do not end these sequences; up to the first one the tokens are the same.
        unaffected = generate_alone(plain, one.prompt, length, do_sample=False)
        assert one.generated[: len(unaffected)] == unaffected and len(expected) >= 1


@pytest.mark.parametrize("fault", ["positions", "column", "mask"])
def test_wrong_logits_are_refused(fault, monkeypatch):
    _, ours = models("llama")
    if fault == "positions":
        forward = type(ours).forward

        def wrong(self, *args, position_ids, **rest):
            return forward(self, *args, position_ids=position_ids * (position_ids.shape[1] > 1), **rest)

        monkeypatch.setattr(type(ours), "forward", wrong)
    elif fault == "column":
        update = SlotLayer.update

        def wrong(self, keys, values, *args, **kwargs):
            self._pool.positions = self._pool.positions * 0
            return update(self, keys, values)

        monkeypatch.setattr(SlotLayer, "update", wrong)
    else:
        monkeypatch.setattr(torch.Tensor, "masked_fill_", lambda self, mask, value: self)
    assert not supports_slots(ours)


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (4, 4), (8, 1)])
def test_shared_keys_are_not_repeated_for_the_same_result(heads, kv_heads):
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(3, count, length, 8) for count, length in ((heads, 1), (kv_heads, 5), (kv_heads, 5))
    )
    mask = torch.zeros(3, 1, 1, 5).masked_fill_(
        torch.arange(5) > torch.tensor([4, 2, 0])[:, None, None, None], -torch.inf
    )
    groups = heads // kv_heads
    expected = F.scaled_dot_product_attention(
        query, repeat_kv(key, groups), repeat_kv(value, groups), attn_mask=mask, scale=0.3
    )
    actual = decode_attention(query, key, value, mask, 0.3)
    torch.testing.assert_close(actual, expected.transpose(1, 2))


def test_a_shared_prefix_is_part_of_the_softmax():
    torch.manual_seed(0)
    heads, kv_heads, size, own = 6, 2, 8, 5
    prefixes = [
        (SharedPrefix(length, [torch.randn(kv_heads, length, size)], [torch.randn(kv_heads, length, size)]), rows)
        for length, rows in ((7, torch.tensor([0, 3])), (2, torch.tensor([2])))
    ]
    query = 5 * torch.randn(4, heads, 1, size)
    key, value = torch.randn(4, kv_heads, own, size), torch.randn(4, kv_heads, own, size)
    mask = torch.zeros(4, 1, 1, own).masked_fill_(
        torch.arange(own) > torch.tensor([4, 2, 0, 1])[:, None, None, None], -torch.inf
    )
    actual = decode_attention(query, key, value, mask, 0.4, prefixes)
    of_row = {int(row): prefix for prefix, rows in prefixes for row in rows}
    for row in range(4):
        whole_key, whole_value, whole_mask = key[row], value[row], mask[row]
        if row in of_row:
            prefix = of_row[row]
            whole_key, whole_value = (
                torch.cat([shared, whole], dim=1)
                for shared, whole in ((prefix.keys[0], whole_key), (prefix.values[0], whole_value))
            )
            whole_mask = torch.cat([torch.zeros(1, 1, prefix.length), whole_mask], dim=-1)
        expected = F.scaled_dot_product_attention(
            query[row],
            repeat_kv(whole_key[None], heads // kv_heads)[0],
            repeat_kv(whole_value[None], heads // kv_heads)[0],
            attn_mask=whole_mask,
            scale=0.4,
        )
        torch.testing.assert_close(actual[row], expected.transpose(0, 1))
