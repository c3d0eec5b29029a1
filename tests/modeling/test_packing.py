"""Packed losses, logits and gradients equal those of plain Hugging Face on one sequence at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from pipelines.modeling.attention import PACKED, PATHS, SHARED, UNPACKED, candidate_attention, supports_packing
from pipelines.modeling.attention_paths import flash_kernel_at_every_size
from pipelines.modeling.loading import detect_linear_lm_head
from pipelines.modeling.packing import cross_entropy, sequence_mean_losses, supervised_logits, token_losses
from pipelines.modeling.token_dataset import TokenDataset, validation_losses
from pipelines.modeling.token_sequences import TokenSequences
from tests.tiny import make_model

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "max_position_embeddings": 128,
}
ARCHITECTURES = {
    "llama": ("LlamaConfig", {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}),
    "mistral window": (
        "MistralConfig",
        {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "sliding_window": 4},
    ),
    "gemma": ("GemmaConfig", {**SMALL, "intermediate_size": 48, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2 capped": (
        "Gemma2Config",
        {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
    ),
    "phi": ("PhiConfig", {**SMALL, "intermediate_size": 48}),
    "gpt2": (
        "GPT2Config",
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": 64,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
}


def unrelated_sequences(seed=0, lengths=(7, 12, 3, 9)):
    rng = np.random.default_rng(seed)
    return TokenSequences.supervised_from(
        [rng.integers(3, 60, length) for length in lengths], [length // 2 for length in lengths]
    )


def sequences_with_shared_prefix(seed=0):
    """A prompt with five answers, one of them twice, the prompt itself as a sequence, and another that shares half."""
    rng = np.random.default_rng(seed)
    prompt, half = rng.integers(3, 60, 14), rng.integers(3, 60, 6)
    answers = [rng.integers(3, 60, length) for length in (1, 3, 6, 2)]
    input_ids = [
        *(np.concatenate([prompt, answer]) for answer in (*answers, answers[1])),
        prompt,
        np.concatenate([prompt[:7], half]),
    ]
    return TokenSequences.supervised_from(input_ids, [14, 14, 15, 9, 14, 6, 7])


UNRELATED_SPANS = [[(1, 3), (5, 7)], [(2, 3), (4, 8), (10, 11)], [(1, 2)], [(3, 4), (4, 6)]]
"""Several spans per sequence: adjacent ones, of one token, from the second token on, and short of the end."""
SHARED_PREFIX_SPANS = [
    [(3, 6), (14, 15)],  # supervises part of the shared prefix
    [(14, 17)],  # supervises none of it
    [(2, 9), (13, 16), (19, 20)],  # across the end of the shared prefix
    [(1, 14)],  # all of it and nothing else
    [(5, 6), (15, 16)],  # the tokens of the second sequence, supervised elsewhere
    [(4, 7), (12, 14)],
    [(3, 8), (10, 12)],
]
BATCHES = {
    "unrelated": unrelated_sequences(),
    "shared prefix": sequences_with_shared_prefix(),
    "unrelated, several spans": TokenSequences(unrelated_sequences().input_ids, UNRELATED_SPANS),
    "shared prefix, several spans": TokenSequences(sequences_with_shared_prefix().input_ids, SHARED_PREFIX_SPANS),
}


def hugging_face_labels(sequences, index):
    """[1, length]: -100 wherever the token is not supervised."""
    ids = torch.from_numpy(sequences.input_ids[index].astype(np.int64))
    labels = torch.full_like(ids, -100)
    for start, end in sequences.supervised_spans[index]:
        labels[start:end] = ids[start:end]
    return labels[None]


def hugging_face_losses(model, sequences):
    """The loss of every supervised token by plain Hugging Face: one sequence at a time, every logit computed."""
    losses = []
    for index, ids in enumerate(sequences.input_ids):
        logits = model(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0, :-1]
        labels = hugging_face_labels(sequences, index)[0, 1:]
        losses.append(F.cross_entropy(logits, labels, reduction="none")[labels != -100])
    return torch.cat(losses)


def varlen_attention_formula(
    query, key, value, query_offsets, key_offsets, max_queries, max_keys, *, scale=None, window_size=(-1, -1)
):
    """`torch.nn.attention.varlen.varlen_attn`, sequence by sequence, causal from the last query and key backwards."""
    outputs, (window, right) = [], window_size
    assert right == 0 and int(query_offsets[-1]) == len(query) and int(key_offsets[-1]) == len(key) == len(value)
    assert int(query_offsets.diff().max()) == max_queries and int(key_offsets.diff().max()) == max_keys
    bounds = (offsets.unfold(0, 2, 1).tolist() for offsets in (query_offsets, key_offsets))
    for (query_start, query_end), (key_start, key_end) in zip(*bounds, strict=True):
        q, k, v = query[query_start:query_end], key[key_start:key_end], value[key_start:key_end]
        k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for tensor in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))[None, :]
        visible = (distance >= 0) & ((distance <= window) if window >= 0 else True)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~visible, -torch.inf).softmax(-1), v))
    return torch.cat(outputs)


@pytest.fixture
def varlen_formula(monkeypatch):
    """Replaces the flash kernel, which needs a GPU, by its formula in fp32."""
    monkeypatch.setattr("pipelines.modeling.attention_paths.varlen_attn", varlen_attention_formula)
    monkeypatch.setattr("pipelines.modeling.attention_paths.FLASH_DTYPES", (torch.float32,))
    with flash_kernel_at_every_size():
        yield


@pytest.fixture(params=PATHS)
def path(request, varlen_formula):
    """An attention path."""
    return request.param


@pytest.mark.parametrize("sequences", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_losses_and_gradients_equal_those_of_single_sequences(architecture, sequences, path):
    name, settings = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    config, same = (getattr(transformers, name)(**settings) for _ in range(2))
    reference = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    packed = AutoModelForCausalLM.from_config(
        same, attn_implementation=candidate_attention(type(reference), same)
    ).eval()
    if supports_packing(packed):
        packed.set_attn_implementation(SHARED[path])
    packed.load_state_dict(reference.state_dict())
    expected, losses = hugging_face_losses(reference, sequences), token_losses(packed, sequences)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    expected.sum().backward()
    losses.sum().backward()
    for (key, a), b in zip(reference.named_parameters(), packed.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("frozen_head", [True, False], ids=["linear cross entropy", "logits"])
@pytest.mark.parametrize("attention", [*SHARED.values(), *PACKED.values(), UNPACKED])
@pytest.mark.parametrize("name", ["unrelated, several spans", "shared prefix, several spans"])
def test_several_spans_equal_hugging_face_labels(tmp_path, name, attention, frozen_head, varlen_formula):
    sequences = BATCHES[name]
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=attention).eval()
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    for instance in (model, reference):
        instance.get_output_embeddings().requires_grad_(not frozen_head)
    detect_linear_lm_head(model)
    # Hugging Face's own loss of each sequence, from labels that are -100 outside of the spans.
    means = [
        reference(input_ids=torch.from_numpy(ids)[None], labels=hugging_face_labels(sequences, index)).loss
        for index, ids in enumerate(sequences.input_ids)
    ]
    counts = [int((hugging_face_labels(sequences, index) != -100).sum()) for index in range(len(sequences))]
    assert sequences.supervised_lengths == counts and sequences.num_supervised_tokens == sum(counts)
    expected = sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)
    loss = token_losses(model, sequences).sum() / sequences.num_supervised_tokens
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    assert list(sequence_mean_losses(model, sequences, batch_tokens=30)) == pytest.approx(
        [float(mean.detach()) for mean in means], abs=1e-5
    )
    logits, targets = supervised_logits(model, sequences)
    torch.testing.assert_close(F.cross_entropy(logits, targets), expected, atol=1e-6, rtol=1e-5)
    expected.backward()
    loss.backward()
    for a, b in zip(reference.parameters(), model.parameters(), strict=True):
        if a.grad is not None:
            torch.testing.assert_close(b.grad, a.grad, atol=1e-6, rtol=1e-4)


def test_validation_losses_of_several_spans_are_means_over_tokens(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED["loop"]).eval()
    sequences = BATCHES["shared prefix, several spans"]
    tasks = ["a", "b", "a", "a", "b", "a", "b"]
    losses = hugging_face_losses(model, sequences).split(sequences.supervised_lengths)
    result = validation_losses(model, TokenDataset(sequences, tasks))
    assert result["loss"] == pytest.approx(float(torch.cat(losses).mean().detach()), abs=1e-6)
    of_b = torch.cat([loss for loss, task in zip(losses, tasks, strict=True) if task == "b"])
    assert result["tasks"]["b"] == pytest.approx(float(of_b.mean().detach()), abs=1e-6)


def test_a_packed_pass_builds_no_attention_mask(tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED["loop"]).eval()
    with monkeypatch.context() as patch:
        patch.setattr(
            "transformers.masking_utils.find_packed_sequence_indices", lambda *_: pytest.fail("builds a mask")
        )
        token_losses(model, unrelated_sequences())


def test_a_long_pass_uses_no_dense_mask(tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED["dense"]).eval()
    expected = token_losses(model, sequences_with_shared_prefix())
    monkeypatch.setattr("pipelines.modeling.attention_paths.MAX_DENSE_TOKENS", 4)
    monkeypatch.setattr("pipelines.modeling.attention_paths.dense_mask", lambda *_: pytest.fail("builds a mask"))
    torch.testing.assert_close(token_losses(model, sequences_with_shared_prefix()), expected)


def test_sequences_do_not_attend_to_each_other(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED["loop"]).eval()
    sequences = unrelated_sequences()
    single = token_losses(model, sequences[1:2])
    packed = token_losses(model, sequences).split(sequences.supervised_lengths)[1]
    torch.testing.assert_close(packed, single, atol=1e-6, rtol=1e-6)


def record_forward_lengths(model, lengths):
    return model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: lengths.append(output.shape[1])
    )


def test_a_shared_prefix_is_computed_once(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED["loop"]).train()
    sequences, lengths = sequences_with_shared_prefix(), []
    record_forward_lengths(model, lengths)
    token_losses(model, sequences)
    supervised_logits(model, sequences, share_prefixes=False)
    assert lengths == [14 + 1 + 3 + 3 + 6 + 2 + 6, sequences.num_tokens]  # three tokens are too few to share


def test_a_supervised_prefix_is_shared_whichever_sequences_supervise_it(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED["loop"]).train()
    lengths = []
    record_forward_lengths(model, lengths)
    token_losses(model, BATCHES["shared prefix, several spans"])
    token_losses(model, sequences_with_shared_prefix())
    assert lengths[0] == lengths[1]


def test_dropout_is_drawn_per_sequence(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED["loop"])
    model = get_peft_model(model, LoraConfig(target_modules=["q_proj"], lora_dropout=0.1, task_type="CAUSAL_LM"))
    sequences, lengths = sequences_with_shared_prefix(), []
    record_forward_lengths(model, lengths)
    token_losses(model.train(), sequences)
    token_losses(model.eval(), sequences)
    assert lengths[0] == sequences.num_tokens > lengths[1]


def test_sequence_losses_are_means_whatever_the_batches(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path), attn_implementation=SHARED["loop"]).eval()
    sequences = unrelated_sequences()
    small, large = (list(sequence_mean_losses(model, sequences, batch_tokens=size)) for size in (8, 4096))
    assert small == pytest.approx(large, abs=1e-6)
    assert small[0] == pytest.approx(float(hugging_face_losses(model, sequences[0:1]).mean().detach()), abs=1e-6)


def test_cross_entropy_of_half_precision_logits_is_computed_in_fp32():
    logits = torch.randn(50, 3000, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.arange(50)
    losses = cross_entropy(logits, targets)
    expected = F.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    assert losses.dtype == torch.float32


def test_losses_in_evaluation_equal_those_under_autocast_without_a_linear_head(tmp_path):
    """A bf16 model whose logits are not the product of head and hidden states, in and outside of a training."""
    model = AutoModelForCausalLM.from_pretrained(make_model(tmp_path / "m"), dtype=torch.bfloat16).eval()
    model.has_linear_lm_head = False
    sequences = unrelated_sequences()
    with torch.no_grad():
        outside = token_losses(model, sequences)
        with torch.autocast("cpu", torch.bfloat16):
            inside = token_losses(model, sequences)
    assert outside.dtype == inside.dtype == torch.float32
    torch.testing.assert_close(outside, inside, rtol=0, atol=2e-2)
    logits, targets = supervised_logits(model, sequences)
    torch.testing.assert_close(outside, F.cross_entropy(logits.detach().float(), targets, reduction="none"))
