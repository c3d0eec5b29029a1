"""Streamed text: joined, it is the answer and the thought of the whole completion; nothing is shown too early."""

import random

import pytest

from pipelines.data.prompt_format import PromptFormat
from pipelines.data.reasoning import ReasoningMarkers
from pipelines.inference.text_stream import IncrementalDecoder, TextStream
from tests.tiny_tokenizers import KINDS, make_tokenizer

UNICODE = "naïve 日本語 🙂🏳️‍🌈 \N{REPLACEMENT CHARACTER} e\u0301 ends"


def streamed(prompt_format, tokens, prompt=(), stop=()):
    """The parts of the thought and of the answer, and whether a stop text ended it."""
    stream = TextStream(prompt_format, list(prompt), stop)
    parts = []
    for token in tokens:
        parts.append(stream.push(token))
        if parts[-1].is_stopped:
            return parts
    return [*parts, stream.finish()]


def joined(parts):
    return "".join(part.reasoning for part in parts), "".join(part.answer for part in parts)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("kind", [*KINDS, "qwen3_like"])
@pytest.mark.parametrize("text", ["plain text", UNICODE, " leading", "two\n\nlines  ", "<", "<thin ice", "a <think> b"])
def test_the_parts_are_the_whole_text(kind, text):
    prompt_format = PromptFormat(make_tokenizer(kind))
    tokens = encode(prompt_format.tokenizer, text)
    parts = streamed(prompt_format, tokens)
    split = prompt_format.split_completion([], tokens)
    assert joined(parts) == ("", split.answer)
    if kind == "pad_is_eos":
        assert split.answer == text
        assert len([part for part in parts if part.answer]) > 1 or len(text) == 1


def test_no_part_has_half_a_character():
    prompt_format = PromptFormat(make_tokenizer("pad_is_eos"))
    text = "日本🙂"
    parts = [part.answer for part in streamed(prompt_format, encode(prompt_format.tokenizer, text))]
    assert [part for part in parts if part] == list(text)
    cut = encode(prompt_format.tokenizer, text)[:-2]
    assert joined(streamed(prompt_format, cut))[1] == prompt_format.split_completion([], cut).answer


def test_random_bytes():
    prompt_format = PromptFormat(make_tokenizer("pad_is_eos"))
    rng = random.Random(0)
    for _ in range(300):
        tokens = [rng.randrange(5, len(prompt_format.tokenizer)) for _ in range(rng.randrange(1, 30))]
        assert joined(streamed(prompt_format, tokens))[1] == prompt_format.split_completion([], tokens).answer


@pytest.mark.parametrize("kind", ["qwen3_like", "r1_like"])
@pytest.mark.parametrize(
    "text",
    [
        "<think>\nfirst\nthen\n</think>\n\nthe answer",
        "<think>two </thi nk> words</think>answer <think> mentioned",
        "<think>a</think>\n\n<think>b</think>\n\nc",
        "  <think>a</think>b",
        "<think>never ends",
        "<think>\n\n</think>\n\nempty thought",
        "a thought that only ends</think>\n\nthe answer",
        "日本 <think",
        "",
    ],
)
def test_thought_and_answer(kind, text):
    prompt_format = PromptFormat(make_tokenizer(kind))
    opens = kind == "r1_like"
    prompt = encode(prompt_format.tokenizer, "<|im_start|>assistant\n<think>\n" if opens else "x")
    if opens:
        text = text.replace("<think>", "", 1).strip()
    tokens = encode(prompt_format.tokenizer, text)
    split = prompt_format.split_completion(prompt, tokens)
    reasoning, answer = joined(streamed(prompt_format, tokens, prompt))
    if not opens and "only ends" in text:  # known only at the end; what looked like the answer has been shown
        assert (reasoning, answer) == ("", text) and split.answer == "the answer"
        return
    assert (reasoning, answer) == (split.reasoning or "", split.answer)


def test_the_thought_is_streamed_word_by_word():
    prompt_format = PromptFormat(make_tokenizer("qwen3_like"))
    tokens = encode(prompt_format.tokenizer, "<think>\none two three\n</think>\n\nfour five")
    parts = streamed(prompt_format, tokens)
    assert sum(bool(part.reasoning) for part in parts) > 5 and sum(bool(part.answer) for part in parts) > 5


class _Tags:
    """A prompt format whose answers are in tags."""

    tokenizer = make_tokenizer("pad_is_eos")
    reasoning_markers = ReasoningMarkers(
        "<think>", "</think>", "<think>", "</think>", (("<answer>", "</answer>"), ("[BEGIN]", "[END]"))
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think>\n<answer>\nb </answer>\n", "b"),
        ("<think>a</think><answer> b", "b"),
        ("<think>a</think><answer>b </answer> c ", "b </answer> c"),
        ("<think>a</think> <ans", "<ans"),
        ("<think>a</think>b</answer>", "b</answer>"),
        ("<think>a</think>[BEGIN]b[EN[END]", "b[EN"),
        ("<think>a</think>", ""),
    ],
)
def test_tags_around_the_answer(text, expected):
    tokens = encode(_Tags.tokenizer, text)
    assert joined(streamed(_Tags, tokens)) == ("a", expected)
    markers = _Tags.reasoning_markers
    assert markers.strip_answer(text.rpartition("</think>")[2]) == expected


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("x", "ee"), "one two thr"),
        ("one two three", ("three!", "thr!"), None),
        ("aaab", ("aab",), "a"),
        ("line\nnext", ("\n",), "line"),
        ("日本語", ("本",), "日"),
        ("stop", ("stop",), ""),
        ("abcabd", ("abd", "bc"), "a"),
    ],
)
def test_stop_texts(text, stop, expected):
    prompt_format = PromptFormat(make_tokenizer("pad_is_eos"))
    parts = streamed(prompt_format, encode(prompt_format.tokenizer, text), stop=stop)
    assert parts[-1].is_stopped == (expected is not None)
    assert joined(parts)[1] == (text if expected is None else expected)


def test_stop_texts_do_not_end_thoughts():
    prompt_format = PromptFormat(make_tokenizer("qwen3_like"))
    tokens = encode(prompt_format.tokenizer, "<think>\na END b\n</think>\n\nc END d")
    parts = streamed(prompt_format, tokens, stop=("END",))
    assert parts[-1].is_stopped and joined(parts) == ("a END b", "c ")


def test_only_the_last_tokens_are_decoded():
    tokenizer = make_tokenizer("pad_is_eos")
    lengths = []

    def decode(tokens):
        lengths.append(len(tokens))
        return tokenizer.decode(tokens)

    decoder = IncrementalDecoder(decode)
    text = "the tea " * 100
    assert "".join(decoder.push(token) for token in encode(tokenizer, text)) + decoder.flush() == text
    assert max(lengths) < 10
