"""Which markers a template or a vocabulary has, and how completions are split into thought and answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from pipelines.data.chat_template import ChatTemplate
from pipelines.data.reasoning import (
    THINK_TAGS,
    ReasoningMarkers,
    SplitCompletion,
    split_completion,
    split_inline_thought,
)
from pipelines.data.reasoning_markers import find_markers
from tests.tiny_tokenizers import byte_level, sentencepiece_like

TURN = "{% for m in messages %}<|{{ m.role }}|>ANSWER<|end|>{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|assistant|>GENERATION{% endif %}"


def template(thought: str, generation: str = "", variable: str = "reasoning_content") -> ChatTemplate:
    """A template that writes `thought`, in which … is the thought, before an answer."""
    written = thought.replace("…", "{{ m." + variable + " }}")
    answer = "{% if m." + variable + " %}" + written + "{% endif %}{{ m.content }}"
    return template_of(TURN.replace("ANSWER", answer) + PROMPT.replace("GENERATION", generation))


def template_of(source: str) -> ChatTemplate:
    return ChatTemplate(SimpleNamespace(chat_template=source, special_tokens_map={}))


@pytest.mark.parametrize(
    ("thought", "generation", "markers"),
    [
        ("<think>\n…\n</think>\n\n", "", ("<think>", "</think>", "<think>\n", "\n</think>\n\n")),
        ("<think>\n…\n</think>\n\n", "<think>\n", ("<think>", "</think>", "<think>\n", "\n</think>\n\n")),
        ("<think>\n…\n</think>\n\n", "<think>\n\n</think>\n\n", ("<think>", "</think>", "<think>\n", "\n</think>\n\n")),
        ("[THINK]…[/THINK]", "", ("[THINK]", "[/THINK]", "[THINK]", "[/THINK]")),
        (
            "<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>",
            "",
            (
                "<|channel|>analysis<|message|>",
                "<|channel|>final<|message|>",
                "<|channel|>analysis<|message|>",
                "<|end|><|start|>assistant<|channel|>final<|message|>",
            ),
        ),
        (
            "<|channel>thought\n…<channel|>",
            "",
            ("<|channel>thought", "<channel|>", "<|channel>thought\n", "<channel|>"),
        ),
        # Markers that no table knows.
        ("<muse>\n…\n</muse>\n", "", ("<muse>", "</muse>", "<muse>\n", "\n</muse>\n")),
        ("<muse>\n…\n</muse>\n", "<muse>\n", ("<muse>", "</muse>", "<muse>\n", "\n</muse>\n")),
        ("((…))", "", ("((", "))", "((", "))")),
        ("…[DONE]", "", ("", "[DONE]", "", "[DONE]")),
        (
            "…[BEGIN FINAL RESPONSE]\n",
            "Here are my reasoning steps:\n",
            (
                "Here are my reasoning steps:",
                "[BEGIN FINAL RESPONSE]",
                "Here are my reasoning steps:\n",
                "[BEGIN FINAL RESPONSE]\n",
            ),
        ),
    ],
)
def test_the_markers_are_what_the_template_writes_around_a_thought(
    thought: str, generation: str, markers: tuple[str, str, str, str]
) -> None:
    found = find_markers(template(thought, generation), [])
    assert found is not None
    assert (found.open, found.close, found.before, found.between) == markers
    opens = bool(generation) and "</think>" not in generation
    assert found.opened_by(f"<|user|>why?<|end|><|assistant|>{generation}") == opens


@pytest.mark.parametrize("variable", ["reasoning_content", "reasoning", "thinking", "thought"])
def test_templates_read_the_thought_under_several_names(variable: str) -> None:
    found = find_markers(template("<think>…</think>", variable=variable), [])
    assert found is not None and found.before == "<think>"


def test_a_template_may_write_thoughts_only_if_a_variable_says_so() -> None:
    source = TURN.replace("ANSWER", "{% if thinking %}<muse>{{ m.reasoning_content }}</muse>{% endif %}{{ m.content }}")
    found = find_markers(template_of(source + PROMPT), [])
    assert found is not None and (found.open, found.close) == ("<muse>", "</muse>")


def test_a_template_that_takes_blocks_of_content() -> None:
    blocks = "{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}{{ '[THINK]' ~ b.thinking ~ "
    blocks += "'[/THINK]' if b.thinking else b.text }}{% endfor %}{% endif %}"
    found = find_markers(template_of(TURN.replace("ANSWER", blocks) + PROMPT), [])
    assert found is not None and (found.before, found.between) == ("[THINK]", "[/THINK]")


def test_a_template_that_writes_no_thought_names_its_markers_in_its_text_or_its_vocabulary() -> None:
    strips = TURN.replace("ANSWER", "{{ m.content.split('</think>')[-1] }}") + PROMPT
    assert find_markers(template_of(strips), []) == THINK_TAGS
    plain = template_of(TURN.replace("ANSWER", "{{ m.content }}") + PROMPT)
    assert find_markers(plain, ["<|end|>"]) is None
    assert find_markers(plain, ["<think>", "</think>"]) == THINK_TAGS
    assert find_markers(None, ["[THINK]"]) is not None
    assert find_markers(None, []) is None
    gemma = find_markers(None, ["<unused94>", "<unused95>"])
    assert gemma is not None and not gemma.is_trainable


def test_a_template_that_writes_content_of_any_type_has_no_markers() -> None:
    assert find_markers(template_of(TURN.replace("ANSWER", "{{ m.content }}") + PROMPT), []) is None
    assert find_markers(template_of(TURN.replace("ANSWER", "{{ m.content | tojson }}") + PROMPT), []) is None


def test_a_template_that_fails_has_the_markers_of_the_vocabulary() -> None:
    assert find_markers(template_of("{{ raise_exception('no') }}"), ["<think>"]) == THINK_TAGS


# --- splitting ---

HARMONY = find_markers(None, ["<|channel|>"])
COMMAND = find_markers(None, ["<|START_THINKING|>", "<|START_RESPONSE|>"])
GRANITE = find_markers(None, ["<think>", "<response>"])
APRIEL = find_markers(None, ["[BEGIN FINAL RESPONSE]"])
MEDGEMMA = find_markers(None, ["<unused95>"])
THINK = "<think>"


def decode_text(tokens: Sequence[int], skip_special: bool) -> str:
    text = "".join(map(chr, tokens))
    return text.replace("¤", "") if skip_special else text


def split(text: str, markers: ReasoningMarkers | None = THINK_TAGS, in_thought: bool = False) -> SplitCompletion:
    """Splits a text whose tokens are its characters. ¤ is a special token."""
    return split_completion(list(map(ord, text)), decode_text, markers, in_thought)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("positive", None, "positive"),
        (" positive ", None, " positive "),
        ("<think>\nIt is good.\n</think>\n\npositive", "It is good.", "positive"),
        ("<think>\n\n</think>\n\npositive", "", "positive"),
        ("It is good.\n</think>\n\npositive ", "It is good.", "positive "),
        ("</think>positive", "", "positive"),
        ("<think>a</think>b<think>c</think>d", "a\n\nb\n\nc", "d"),
        ("<think><think>a</think> b </think> c", "a\n\nb", "c"),
        ("<think>a</think>", "a", ""),
        ("<think>a</think>  \n", "a", ""),
        ("Sure.\n<think>a</think>b", "Sure.\n\na", "b"),
        ("The tag <think> begins a thought", None, "The tag <think> begins a thought"),
        ("<think>a</think>The tag <think> begins it", "a", "The tag <think> begins it"),
        ("<think>a</think>¤b¤", "a", "b"),
        ("<think>¤a</think>b", "a", "b"),
        ("", None, ""),
    ],
)
def test_the_answer_is_what_follows_the_last_thought(text: str, reasoning: str | None, answer: str) -> None:
    parts = split(text)
    assert (parts.reasoning, parts.answer, parts.is_unfinished) == (reasoning, answer, False)


@pytest.mark.parametrize(
    ("text", "in_thought", "reasoning"),
    [
        ("<think>\nIt is", False, "It is"),
        ("It is", True, "It is"),
        ("", True, ""),
        ("<think>It is", True, "It is"),
        ("<think>a</think>b\n<think>c", False, "a\n\nb\n\nc"),
        ("  \n<think>", False, ""),
    ],
)
def test_a_thought_that_does_not_end_has_no_answer(text: str, in_thought: bool, reasoning: str) -> None:
    parts = split(text, in_thought=in_thought)
    assert (parts.answer, parts.reasoning, parts.is_unfinished) == ("", reasoning, True)
    assert parts.num_reasoning_tokens == len(text)


def test_a_prompt_that_opens_a_thought_makes_the_completion_begin_in_it() -> None:
    parts = split("It is good.\n</think>\n\npositive", in_thought=True)
    assert (parts.answer, parts.reasoning) == ("positive", "It is good.")
    assert parts.num_reasoning_tokens == len("It is good.\n</think>")
    assert THINK_TAGS.opened_by("<|user|>x<|assistant|><think>\n")
    assert not THINK_TAGS.opened_by("<|user|>x<|assistant|><think>\n\n</think>\n\n")
    assert not THINK_TAGS.opened_by("<|user|>what is <think>?<|assistant|>")


def test_without_markers_nothing_is_split() -> None:
    text = "<think>a</think>b"
    assert split(text, None) == SplitCompletion(text)
    assert split(text, HARMONY).answer == text


@pytest.mark.parametrize(
    ("markers", "text", "reasoning", "answer"),
    [
        (
            HARMONY,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
            "a",
            "b",
        ),
        (HARMONY, "<|channel|>final<|message|>b", "", "b"),
        (HARMONY, "<|channel|>final <|constrain|>json<|message|>{}", "", "{}"),
        (
            HARMONY,
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}",
            "a",
            "<|channel|>commentary to=functions.f<|message|>{}",
        ),
        (COMMAND, "<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "a", "b"),
        (
            COMMAND,
            "<|START_THINKING|>a<|END_THINKING|><|START_ACTION|>[{}]<|END_ACTION|>",
            "a",
            "<|START_ACTION|>[{}]<|END_ACTION|>",
        ),
        (GRANITE, "<think>a</think>\n<response>b</response>", "a", "b"),
        (GRANITE, "<think>a</think>\n<response>b ", "a", "b "),
        (APRIEL, "Here are my reasoning steps:\na\n[BEGIN FINAL RESPONSE]\nb\n[END FINAL RESPONSE]\n", "a", "b"),
        (MEDGEMMA, "<unused94>thought\na<unused95>b", "a", "b"),
        (find_markers(None, ["[THINK]"]), "[THINK]a[/THINK]b", "a", "b"),
        (find_markers(None, ["◁think▷"]), "◁think▷a◁/think▷b", "a", "b"),
    ],
)
def test_other_markers(markers: ReasoningMarkers, text: str, reasoning: str, answer: str) -> None:
    parts = split(text, markers)
    assert (parts.reasoning, parts.answer) == (reasoning, answer)


def test_a_control_token_opens_a_thought_anywhere() -> None:
    parts = split("<|channel|>final<|message|>b<|start|>assistant<|channel|>analysis<|message|>c", HARMONY)
    assert parts.is_unfinished and parts.answer == "" and parts.reasoning == "b\n\nc"


# --- real tokenizers' decoders ---


def added(tokens: Sequence[str], special: bool) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|im_end|>")
    tokenizer.add_tokens(
        [AddedToken(token, special=special, normalized=False) for token in tokens], special_tokens=special
    )
    return tokenizer


TOKENIZERS = {
    "ordinary": added([], False),
    "added": added(["<think>", "</think>"], False),
    "special": added(["<think>", "</think>"], True),
    "sentencepiece": PreTrainedTokenizerFast(
        tokenizer_object=sentencepiece_like(), eos_token="</s>", unk_token="<unk>"
    ),
}


def decoder(tokenizer: PreTrainedTokenizerFast):  # type: ignore[no-untyped-def]
    return lambda tokens, skip: str(tokenizer.decode(list(tokens), skip_special_tokens=skip))


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize(
    ("thought", "answer"), [("It is good", "positive"), ("no  spaces\nlost", "a\n b  c"), ("<x", ">")]
)
def test_tokens_are_split_whatever_the_tokenizer(kind: str, thought: str, answer: str) -> None:
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer(f"<think>\n{thought}\n</think>\n\n{answer}", add_special_tokens=False)["input_ids"]
    parts = split_completion(ids, decoder(tokenizer), THINK_TAGS)
    assert (parts.reasoning, parts.answer) == (thought, answer)
    before = tokenizer(f"<think>\n{thought}\n</think>", add_special_tokens=False)["input_ids"]
    assert parts.num_reasoning_tokens == len(before)


def test_bytes_of_one_character_stay_together() -> None:
    tokenizer = TOKENIZERS["added"]
    ids = tokenizer("<think>größe 🙂</think>täglich 🙂", add_special_tokens=False)["input_ids"]
    parts = split_completion(ids, decoder(tokenizer), THINK_TAGS)
    assert (parts.reasoning, parts.answer) == ("größe 🙂", "täglich 🙂")


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_any_sequence_of_tokens_is_split_without_an_error(kind: str) -> None:
    tokenizer, draw = TOKENIZERS[kind], random.Random(0)
    pieces = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("<think>", "</think>", "a b", "\n", "ß")
    ]
    pieces += [[draw.randrange(len(tokenizer))] for _ in range(5)]
    for _ in range(300):
        ids = [token for _ in range(draw.randrange(9)) for token in draw.choice(pieces)]
        parts = split_completion(ids, decoder(tokenizer), THINK_TAGS, draw.random() < 0.3)
        assert not parts.is_unfinished or parts.answer == ""
        assert 0 <= parts.num_reasoning_tokens <= len(ids)
        assert "</think>" not in parts.answer
        if parts.reasoning is None:
            assert parts.answer == decoder(tokenizer)(ids, True)


# --- thoughts in rows ---


def test_a_thought_in_a_completion_of_a_row() -> None:
    mistral = find_markers(None, ["[THINK]"])
    assert mistral is not None
    for text in ("<think>\na\n</think>\n\nb", "[THINK]a[/THINK]b", "a\n</think>\nb"):
        assert split_inline_thought(text, mistral) == ("a", "b")
    assert split_inline_thought("b", mistral) is None
    with pytest.raises(ValueError, match="begins a thought with <think> that has no </think>"):
        split_inline_thought("<think>a b", mistral)
