"""`alfine preview`: the turns of rows with what of them is supervised."""

import io

import pytest
from rich.console import Console

from pipelines.commands.token_text import SUPERVISED_STYLE, decoded, print_rows
from pipelines.config.chat_template import PLAIN_TEXT
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import tokenize_examples
from pipelines.data.turn_ranges import turn_ranges
from tests.tiny_tokenizers import CHATML, KINDS, QWEN3_LIKE, R1_LIKE, make_tokenizer

TURNS = [("system", "Be kind."), ("user", "Hi?"), ("assistant", "Yes."), ("user", "And\nyou?"), ("assistant", "Well.")]
GPT_OSS_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content }}"
    "{% if m.role == 'assistant' and loop.last %}<|endoftext|>{% else %}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML
NEEDS_USER_LAST = "{% if messages[-1].role == 'system' %}{{ raise_exception('user?') }}{% endif %}" + CHATML


def conversation(turns=TURNS, supervised=(2, 4)):
    return Conversation([{"role": role, "content": text} for role, text in turns], supervised)


def prompt_format(template=CHATML, kind="pad_is_eos"):
    tokenizer = make_tokenizer(kind)
    tokenizer.chat_template = template
    return PromptFormat(tokenizer)


def example(turns, **values):
    return Example(
        prompt="", split="train", task="t", file="rows.jsonl", row_number=3, fields={}, turns=turns, **values
    )


def printed(examples, prompt_format, width=80, color=False, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=color, color_system="standard" if color else None)
    print_rows(list(tokenize_examples(examples, prompt_format)), prompt_format, console, 1, **options)
    return console.file.getvalue()


def test_every_turn_with_its_role_its_tokens_and_its_supervised_span():
    assert printed([example(conversation(supervised=(4,)))], prompt_format(), width=72).splitlines() == [
        "Lines with > are supervised; ⏎ is a newline before or after a part",
        "t  rows.jsonl:3 " + 56 * "─",
        "1 system, 17 tokens",
        "    <|im_start|>system",
        "    Be kind.<|im_end|>⏎",
        "2 user, 11 tokens",
        "    <|im_start|>user",
        "    Hi?<|im_end|>⏎",
        "3 assistant, 17 tokens, not supervised",
        "    <|im_start|>assistant",
        "    Yes.<|im_end|>⏎",
        "4 user, 16 tokens",
        "    <|im_start|>user",
        "    And",
        "    you?<|im_end|>⏎",
        "5 assistant, 17 tokens, 6 supervised",
        "    <|im_start|>assistant⏎",
        "  > Well.<|im_end|>",
    ]


@pytest.mark.parametrize(
    "template",
    [CHATML, QWEN3_LIKE, R1_LIKE, GPT_OSS_LIKE, NEEDS_USER_LAST],
    ids=["chatml", "qwen3", "r1", "oss", "user"],
)
@pytest.mark.parametrize("supervised", [(2, 4), (4,), (2,)])
def test_turns_hold_their_own_texts_and_all_tokens(template, supervised):
    form, row = prompt_format(template), conversation(supervised=supervised)
    encoded = form.encode(row)
    turns = turn_ranges(row, encoded, form)
    assert [turn.role for turn in turns] == [role for role, _ in TURNS[: supervised[-1] + 1]]
    assert [turn.start for turn in turns] == [0, *(turn.end for turn in turns[:-1])]
    assert turns[-1].end == len(encoded.input_ids)
    assert [turn.supervised for turn in turns if turn.supervised] == list(encoded.supervised_spans)
    for turn, (_, text) in zip(turns, TURNS, strict=False):
        written = form.tokenizer.decode(encoded.input_ids[turn.start : turn.end])
        assert written.count("<|im_start|>") == 1 and text in written
        assert written.lstrip().startswith("<|im_start|>")


def test_a_thought_of_an_earlier_answer_that_the_template_leaves_out():
    turns = [("user", "a?"), ("assistant", "<think>\nlong thought\n</think>\n\nb"), ("user", "c?"), ("assistant", "d")]
    form, row = prompt_format(QWEN3_LIKE), conversation(turns, (3,))
    encoded = form.encode(row)
    texts = [
        form.tokenizer.decode(encoded.input_ids[turn.start : turn.end]) for turn in turn_ranges(row, encoded, form)
    ]
    assert texts[1].strip() == "<|im_start|>assistant\nb<|im_end|>" and texts[2].strip().startswith("<|im_start|>user")


def test_a_system_turn_that_the_template_refuses_is_part_of_the_user_turn():
    form, row = prompt_format(NO_SYSTEM), conversation()
    turns = turn_ranges(row, form.encode(row), form)
    assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_and_completion_of_every_kind_of_tokenizer(kind):
    row = Example(
        prompt="Two?", completion="2", split="train", task="t", file="rows.jsonl", row_number=1, fields={}, system="S"
    )
    for form in (PromptFormat(make_tokenizer(kind)), PromptFormat(make_tokenizer(kind), PLAIN_TEXT)):
        lines = printed([row], form).splitlines()
        assert [line.split(",")[0] for line in lines if line[0].isdigit()] == ["1 system", "2 user", "3 assistant"]
        assert any(line.startswith("  > ") and "2" in line for line in lines)


def test_a_turn_that_the_template_writes_by_itself():
    own = "{% if messages[0].role != 'system' %}<|im_start|>system\nOwn.<|im_end|>\n{% endif %}" + CHATML
    form = prompt_format(own)
    for row, roles in ((conversation(), ["system"]), (conversation(TURNS[1:], (1, 3)), ["template"])):
        encoded = form.encode(row)
        turns = turn_ranges(row, encoded, form)
        assert [turn.role for turn in turns] == [*roles, "user", "assistant", "user", "assistant"]
        assert [turn.supervised for turn in turns if turn.supervised] == list(encoded.supervised_spans)
    assert form.tokenizer.decode(encoded.input_ids[: turns[0].end]) == "<|im_start|>system\nOwn.<|im_end|>\n"


def test_long_texts_are_shortened_unless_they_are_to_be_shown_in_full():
    row = example(conversation([("user", "word " * 1000), ("assistant", "no")], (1,)))
    assert "[…4,4" in printed([row], prompt_format()).replace("\n    ", " ")
    assert printed([row], prompt_format(), shorten=False).count("word") == 1000


def test_colors_of_a_terminal_and_none_in_a_log():
    rows = [example(conversation())]
    assert "\x1b[1;32m" in printed(rows, prompt_format(), color=True) and "\x1b" not in printed(rows, prompt_format())


def test_markup_and_control_characters_of_rows_are_text():
    text = printed(
        [example(conversation([("user", "[red]x[/red] \x1b[2J"), ("assistant", "y")], (1,)))], prompt_format()
    )
    assert "[red]x[/red] ␛[2J" in text


def test_special_tokens_are_highlighted():
    form = prompt_format()
    text = decoded(form.tokenizer("a<|im_end|>b")["input_ids"], form, SUPERVISED_STYLE)
    assert text.plain == "a<|im_end|>b"
    assert [text.plain[span.start : span.end] for span in text.spans if "reverse" in str(span.style)] == ["<|im_end|>"]
