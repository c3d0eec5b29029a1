"""Few-shot prompts: earlier turns under a chat template, text before the prompt without one; as many as fit."""

from dataclasses import replace

import pytest

from pipelines.config.task import FewShotSettings
from pipelines.data.conversation import Conversation
from pipelines.data.examples import Example
from pipelines.data.few_shot import FewShotWriter, cut_at_separator, few_shot_prompts
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import TokenizedExample
from pipelines.evaluation.completion_records import completion_record
from pipelines.evaluation.completions import Completion
from tests.tiny_tokenizers import make_tokenizer


def example(prompt, completion, number=1, **values):
    return Example(
        prompt=prompt,
        completion=completion,
        file="rows.jsonl",
        row_number=number,
        fields={},
        **{"max_new_tokens": 8, **values},
    )


def tokenized(one, prompt_format):
    encoded = prompt_format.encode(one.conversation)
    return TokenizedExample(encoded.input_ids, encoded.supervised_spans, one)


def prompts_of(kind, test_rows, train_rows, wanted=2, context_length=10_000, instruction=None):
    prompt_format = PromptFormat(make_tokenizer(kind))
    prompt_format.context_length = context_length
    rows, candidates = ([tokenized(one, prompt_format) for one in part] for part in (test_rows, train_rows))
    return few_shot_prompts(
        "t", FewShotSettings(k=wanted, instruction=instruction), rows, candidates, prompt_format
    ), prompt_format


TRAIN = [example(f"q{number}", f"a{number}", number, split="train") for number in range(4)]
TEST = [example("what", "this", 9), example("who", "that", 10)]


def text_of(row, prompt_format):
    return prompt_format.tokenizer.decode(row.prompt_ids)


def test_examples_are_earlier_turns_under_a_chat_template():
    prompts, prompt_format = prompts_of("pad_is_eos", [replace(one, system="Be brief.") for one in TEST], TRAIN)
    turns = ["system\nBe brief.", "user\nq0", "assistant\na0", "user\nq1", "assistant\na1", "user\nwhat"]
    expected = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns) + "<|im_start|>assistant\n"
    assert text_of(prompts.rows[0], prompt_format) == expected
    assert prompt_format.tokenizer.decode(prompts.rows[0].completion_ids) == "this<|im_end|>"
    assert prompts.rows[0].example.prompt == "what" and prompts.summary.examples == ["rows.jsonl:0", "rows.jsonl:1"]
    shared = [first == second for first, second in zip(*(row.prompt_ids for row in prompts.rows), strict=False)]
    assert shared.index(False) > prompts.summary.num_tokens  # the examples are a prefix of both


def test_the_system_turns_of_examples_are_left_out():
    with_system = [replace(one, system="Other.") for one in TRAIN]
    assert prompts_of("pad_is_eos", TEST, with_system)[0].rows == prompts_of("pad_is_eos", TEST, TRAIN)[0].rows


@pytest.mark.parametrize("kind", ["no_template", "adds_bos", "sentencepiece"])
def test_examples_are_text_before_the_prompt_without_a_chat_template(kind):
    prompts, prompt_format = prompts_of(kind, [replace(one, system="S") for one in TEST], TRAIN)
    whole = "S\n\nq0a0\n\nq1a1\n\nwhat"
    assert prompts.rows[0].prompt_ids == prompt_format.encode(Conversation.single_turn(whole, "this")).prompt_ids
    assert prompts.separator == "\n\n"
    longer = [replace(TRAIN[0], completion="a\n\nb"), TRAIN[1]]
    assert prompts_of(kind, TEST, longer)[0].separator == "\n\n\n"


@pytest.mark.parametrize(
    ("text", "separator", "answer"),
    [
        ("yes\n\nq5a5", "\n\n", "yes"),
        ("\n\nyes\n\nq5", "\n\n", "\n\nyes"),
        ("yes\nno", "\n\n", "yes\nno"),
        ("yes\n\nno", "", "yes\n\nno"),
    ],
)
def test_a_completion_ends_where_the_next_example_would_begin(text, separator, answer):
    record = cut_at_separator(completion_record(TEST[0], Completion(text, 5, "length")), separator)
    assert record.completion == answer
    assert record.finish_reason == ("length" if text == answer else "stop")


def test_a_task_with_fewer_training_rows_has_fewer_examples():
    prompts, _ = prompts_of("pad_is_eos", TEST, TRAIN[:1], wanted=4)
    assert prompts.summary.k == 1
    assert prompts.summary.notes == ["1 example in the prompt instead of 4: the task has no more training rows."]
    prompts, _ = prompts_of("pad_is_eos", TEST, [], wanted=4)
    assert (prompts.summary.k, prompts.rows) == (0, []) and "no training row" in prompts.summary.notes[0]


@pytest.mark.parametrize("wanted", [1, 2, 3, 4])
def test_no_example_shows_the_answer_of_a_test_row(wanted):
    train = [
        example("who", "that", 0),  # the prompt of a test row
        example(" what\n", "something else", 1),
        example("q2", "a2", 2),
        example("q2 ", "a2", 3),  # a copy
        *TRAIN[3:],
    ]
    prompts, _ = prompts_of("pad_is_eos", TEST, train, wanted)
    assert prompts.summary.examples == ["rows.jsonl:2", "rows.jsonl:3"][:wanted]
    if wanted > 2:
        (note,) = prompts.summary.notes
        assert note == (
            f"2 examples in the prompt instead of {wanted}: the task has no more training rows that differ from all test "
            "rows."
        )


def test_no_example_is_in_the_cluster_of_a_test_row():
    def of(document, rows):
        return [replace(row, fields={"doc": document}) for row in rows]

    prompt_format = PromptFormat(make_tokenizer("pad_is_eos"))
    prompt_format.context_length = 10_000
    train = [*of(1, TRAIN[:1]), *of("2", TRAIN[1:2]), *of(3, TRAIN[2:])]
    rows, candidates = ([tokenized(one, prompt_format) for one in part] for part in (of("1", TEST), train))
    for cluster_by, expected in ((None, [0, 1]), ("doc", [1, 2])):
        prompts = few_shot_prompts("t", FewShotSettings(k=2), rows, candidates, prompt_format, cluster_by=cluster_by)
        assert prompts.summary.examples == [f"rows.jsonl:{number}" for number in expected]


def test_examples_that_do_not_fit_the_context_are_left_out():
    full, _ = prompts_of("pad_is_eos", TEST, TRAIN, wanted=4)
    longest = max(len(row.prompt_ids) for row in full.rows)
    exact, _ = prompts_of("pad_is_eos", TEST, TRAIN, wanted=4, context_length=longest + 8)
    assert exact.summary.k == 4 and exact.rows == full.rows and not exact.summary.notes
    fewer, prompt_format = prompts_of("pad_is_eos", TEST, TRAIN, wanted=4, context_length=longest + 7)
    assert fewer.summary.k == 3
    assert fewer.summary.notes[0].startswith("3 of 4 examples in the prompt: more do not fit; the model's context is")
    assert all(len(row.prompt_ids) + 8 <= prompt_format.context_length for row in fewer.rows)
    none, _ = prompts_of("pad_is_eos", TEST, TRAIN, wanted=4, context_length=40)
    assert none.summary.k == 0 and "not even one fits" in none.summary.notes[0]


def test_a_few_long_rows_have_fewer_examples():
    rows = [example(f"p{number}", "a", number) for number in range(19)] + [example("long " * 20, "a", 20)]
    full, _ = prompts_of("pad_is_eos", rows, TRAIN, wanted=4)
    limit = max(len(row.prompt_ids) for row in full.rows) + 8 - 5
    prompts, _ = prompts_of("pad_is_eos", rows, TRAIN, wanted=4, context_length=limit)
    assert prompts.summary.k == 4 and list(prompts.counts) == [4] * 19 + [3] and prompts.summary.rows_with_fewer == 1
    assert prompts.summary.notes[0].startswith("1 of 20 test rows have fewer than 4 examples in their prompt")


def test_thoughts_of_examples_are_written_as_the_template_writes_earlier_ones():
    train = [replace(one, reasoning=f"because {one.prompt}") for one in TRAIN]
    test = [replace(one, reasoning="") for one in TEST]
    for kind in ("qwen3_like", "r1_like"):  # both leave thoughts of earlier turns out
        prompts, prompt_format = prompts_of(kind, test, train)
        text = text_of(prompts.rows[0], prompt_format)
        assert "q0" in text and "a1" in text and "because" not in text and text.count("<think>") <= 1
        assert text == prompt_format.render_prompt(FewShotWriter(prompt_format).conversation(test[0], train[:2]))


def conversation(*texts, **values):
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    return Conversation(messages, supervised_turns=(len(messages) - 1,), **values)


def test_conversations_are_whole_and_those_with_tools_are_not_used():
    train = [replace(TRAIN[0], turns=conversation("hi", "hello", "bye", "see you"))]
    test = [replace(TEST[0], turns=conversation("a", "b", "c", "d"))]
    prompts, prompt_format = prompts_of("pad_is_eos", test, train, wanted=1)
    said = [line for line in text_of(prompts.rows[0], prompt_format).split("\n") if "<|im_start|>" not in line]
    assert said == [f"{text}<|im_end|>" for text in ("hi", "hello", "bye", "see you", "a", "b", "c")] + [""]
    with_tools = [replace(one, turns=replace(one.turns, tools=[{"type": "function"}])) for one in test]
    prompts, _ = prompts_of("pad_is_eos", with_tools, train, wanted=1)
    assert prompts.summary.k == 0 and "its conversations have tools" in prompts.summary.notes[0]


def test_a_template_that_takes_one_turn_only_has_no_examples():
    prompt_format = PromptFormat(make_tokenizer("pad_is_eos"))
    tokenizer = make_tokenizer("pad_is_eos")
    tokenizer.chat_template = (
        "{% if messages|length > 2 %}{{ raise_exception('one turn only') }}{% endif %}" + tokenizer.chat_template
    )
    strict = PromptFormat(tokenizer)
    rows, candidates = ([tokenized(one, prompt_format) for one in part] for part in (TEST, TRAIN))
    prompts = few_shot_prompts("t", FewShotSettings(k=2), rows, candidates, strict)
    assert prompts.summary.k == 0 and "one turn only" in prompts.summary.notes[0]


def test_a_template_that_leaves_out_earlier_turns_has_no_examples():
    tokenizer = make_tokenizer("pad_is_eos")
    rows, candidates = ([tokenized(one, PromptFormat(tokenizer)) for one in part] for part in (TEST, TRAIN))
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'assistant' or loop.last %}"
    )
    prompts = few_shot_prompts("t", FewShotSettings(k=2), rows, candidates, PromptFormat(tokenizer))
    assert prompts.summary.k == 0 and prompts.summary.notes[0].startswith("No comparison with examples")


@pytest.mark.parametrize("kind", ["pad_is_eos", "no_template"])
@pytest.mark.parametrize("wanted", [0, 1])
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_an_instruction_is_added_to_the_system_turn(kind, wanted, system):
    test = [replace(TEST[0], system=system)]
    prompts, prompt_format = prompts_of(kind, test, TRAIN, wanted, instruction="Answer yes or no.")
    whole = f"{system}\n\nAnswer yes or no." if system else "Answer yes or no."
    shots = {
        "pad_is_eos": "<|im_start|>user\nq0<|im_end|>\n<|im_start|>assistant\na0<|im_end|>\n",
        "no_template": "q0a0\n\n",
    }
    if kind == "pad_is_eos":
        expected = f"<|im_start|>system\n{whole}<|im_end|>\n{shots[kind] * wanted}<|im_start|>user\nwhat<|im_end|>\n"
        expected += "<|im_start|>assistant\n"
    else:
        expected = f"{whole}\n\n{shots[kind] * wanted}what"
    assert text_of(prompts.rows[0], prompt_format) == expected
    assert (prompts.summary.k, prompts.summary.instruction) == (wanted, "Answer yes or no.")
    assert prompt_format.tokenizer.decode(prompts.rows[0].completion_ids).startswith("this")


def test_an_instruction_remains_where_examples_are_not_possible():
    prompts, prompt_format = prompts_of("pad_is_eos", TEST, [], 4, instruction="Answer yes or no.")
    assert prompts.summary.k == 0 and "no training row" in prompts.summary.notes[0]
    assert "Answer yes or no." in text_of(prompts.rows[1], prompt_format)
