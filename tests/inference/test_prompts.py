"""Prompts of a run are those of its evaluation."""

import json

import pytest

from pipelines.config.chat_template import ChatTemplateSettings
from pipelines.config.job import load_job
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import tokenize_examples
from pipelines.errors import AlfineError, DataError
from pipelines.inference.prompts import PromptBuilder
from pipelines.prediction.rows import load_prompts
from tests.tiny_tokenizers import make_tokenizer

TASKS = {
    "odd": {"data": "a", "prompt": "Is it? {q}", "completion": "{a}", "metric": "exact_match", "max_new_tokens": 4},
    "kind": {"data": "a", "prompt": "Say: {q}", "completion": "{a}", "metric": "chrf", "system": "Be kind to {who}."},
    "talk": {"data": "a", "messages": "turns", "metric": "chrf"},
}


def job_of(tmp_path, **pipeline):
    config = {"base_model": "x/y", "pipeline": {"system": "Be brief.", "tasks": TASKS, **pipeline}}
    (tmp_path / "job.yaml").write_text(json.dumps(config))
    return load_job(tmp_path / "job.yaml")


def builder(tmp_path, kind="pad_is_eos", manifest=None, **pipeline):
    job = job_of(tmp_path, **pipeline)
    return PromptBuilder(job, PromptFormat(make_tokenizer(kind), job.chat_template_settings()), manifest or {})


def text(one, prompt):
    return one.prompt_format.tokenizer.decode(prompt.ids)


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
TURNS = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "a"}]


@pytest.mark.parametrize("reasoning", [False, True])
@pytest.mark.parametrize("kind", ["pad_is_eos", "qwen3_like", "r1_like"])
@pytest.mark.parametrize(
    ("task", "row"), [("odd", {"q": "3"}), ("kind", {"q": "x", "who": "me"}), ("talk", {"turns": TURNS})]
)
def test_a_row_has_the_tokens_and_the_limit_of_predict(tmp_path, kind, task, row, reasoning):
    manifest = {"data": {task: {"train_with_reasoning": 3 if reasoning else None}}}
    one = builder(tmp_path, kind, manifest)
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (example,) = load_prompts(one.job, tmp_path / "rows.jsonl", task, "run", manifest=manifest)
    (expected,) = tokenize_examples([example], one.prompt_format)
    prompt = one.from_row(task, row)
    assert prompt.ids == expected.prompt_ids
    assert prompt.max_new_tokens == example.max_new_tokens


def test_a_conversation_has_the_system_turn_of_the_run_unless_it_has_its_own(tmp_path):
    one = builder(tmp_path)
    assert text(one, one.from_messages(TURNS)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\ntea?<|im_end|>\n"
        "<|im_start|>assistant\nyes<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )
    own = one.from_messages([{"role": "system", "content": "Mine."}, *TURNS])
    assert "Mine." in text(one, own) and "brief" not in text(one, own)
    assert one.from_messages(TURNS).max_new_tokens == 128
    assert one.from_messages(TURNS, task="odd").max_new_tokens == 4
    parts = [{"role": "user", "content": [{"type": "text", "text": "te"}, {"type": "text", "text": "a"}]}]
    assert one.from_messages(parts).ids == one.from_messages([{"role": "user", "content": "tea"}]).ids


def test_a_text_is_continued_as_it_is(tmp_path):
    one = builder(tmp_path)
    assert text(one, one.from_text(" the tea")) == " the tea"
    assert text(builder(tmp_path, "adds_bos"), builder(tmp_path, "adds_bos").from_text("tea")) == "<bos>tea"


def test_a_conversation_without_a_chat_template(tmp_path):
    one = builder(tmp_path, "no_template")
    assert text(one, one.from_messages(TURNS[:1])) == "Be brief.\n\ntea?"
    with pytest.raises(AlfineError, match="a conversation needs a chat template"):
        one.from_messages(TURNS)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda one: one.from_messages([]), "^messages has no messages: the list is empty$"),
        (lambda one: one.from_messages(None), "^messages has no messages"),
        (lambda one: one.from_messages("hello"), "^messages holds the text 'hello', not a list"),
        (lambda one: one.from_messages(TURNS[:2]), "messages end with the assistant's turn"),
        (
            lambda one: one.from_messages([{"role": "user", "content": ""}]),
            "^messages, turn 1 .user. is empty; write its text$",
        ),
        (lambda one: one.from_messages(IMAGE), "part 1 of the content is an image, but models read text only$"),
        (lambda one: one.from_messages([{"role": "user", "content": "\ud800"}]), r"has \\ud800, which is half"),
        (lambda one: one.from_text("a\udfff"), r"has \\udfff, which is half"),
        (lambda one: one.from_messages([{"role": "user", "content": {"a": 1}}]), "^messages, turn 1"),
        (lambda one: one.from_messages(TURNS, task="od"), "unknown task 'od'; did you mean odd"),
        (lambda one: one.from_row("odd", {"Q": 1}), "did you mean {Q}"),
        (lambda one: one.from_row("odd", {"q": ["x"]}), "column q holds a list"),
        (lambda one: one.from_row("none", {}), "unknown task 'none'; it has odd, kind, talk"),
        (lambda one: one.from_text(""), "no tokens"),
        (lambda one: one.from_ids([5, 10**6]), "has the token 1000000, but the vocabulary has tokens 0 to"),
        (lambda one: one.from_ids([-1]), "has the token -1"),
    ],
)
def test_prompts_that_cannot_be_built(tmp_path, call, message):
    with pytest.raises(DataError, match=message):
        call(builder(tmp_path))


def test_variables_of_the_template(tmp_path):
    one = builder(tmp_path, "qwen3_like", chat_template_kwargs={"enable_thinking": False})
    assert text(one, one.from_messages(TURNS)).endswith("<think>\n\n</think>\n\n")
    assert ChatTemplateSettings().kwargs == {}
