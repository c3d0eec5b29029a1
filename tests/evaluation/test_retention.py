"""Guards: what their rows become, what they score, and what is said of bad ones."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError

from pipelines.config.forgetting import Forgetting, RetentionEvalSettings
from pipelines.data.prompt_format import PromptFormat
from pipelines.errors import DataError
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.retention import (
    PreparedRetentionEval,
    mean_scores,
    prepare_retention_evals,
    retention_records,
    score_retention_eval,
)
from pipelines.evaluation.retention_files import check_retention_evals, read_multiple_choice, resolve_data_file
from pipelines.modeling.kl_divergence import kl_divergence
from pipelines.modeling.packing import supervised_logits
from pipelines.modeling.reference_model import ReferenceModel
from tests.forgetting.tiny_lora import lora

ITEMS = [
    {"question": f"The inn {n}?", "choices": ["tea", "a gate", "thin ice"], "answer": n % 3, "topic": "x"}
    for n in range(9)
]
TEXTS = [{"text": f"In the inn at nine, {n} gates."} for n in range(4)]
ASKED = [{"instruction": f"Say {n}."} for n in range(3)]
ROWS = [{"q": "tea", "a": "yes"}, {"q": "ice", "a": "no"}]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    for name, rows in (("choices", ITEMS), ("text", TEXTS), ("answers", ASKED), ("task", ROWS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def settings(**more):
    guards = {kind: {"kind": kind, "data": f"{kind}.jsonl"} for kind in ("choices", "text", "answers")}
    guards["task"] = {
        "kind": "task",
        "data": "task.jsonl",
        "prompt": "{q}?",
        "completion": "{a}",
        "metric": "exact_match",
        "max_new_tokens": 4,
    }
    return Forgetting.model_validate({"evals": guards | more})


def test_each_kind_scores_every_item(files):
    moved = lora(files / "m", moved=True).eval()
    loaded = LoadedModel(moved, PromptFormat.from_folder(files / "m"))
    with moved.disable_adapter():
        guards = {
            guard.name: guard
            for guard in prepare_retention_evals(settings(), lambda: loaded, loaded.prompt_format, "id", None)
        }
    base = ReferenceModel(moved)
    scores = {name: score_retention_eval(loaded, guard, base.logits) for name, guard in guards.items()}
    assert {name: len(found) for name, found in scores.items()} == {"choices": 9, "text": 4, "answers": 3, "task": 2}
    assert set(scores["choices"]) <= {0.0, 100.0} and set(scores["task"]) <= {0.0, 100.0}

    text = guards["text"].rows
    logits, targets = supervised_logits(moved, text)
    losses = F.cross_entropy(logits, targets, reduction="none").split(text.supervised_lengths)
    assert scores["text"] == pytest.approx([float(loss.detach().mean()) for loss in losses], rel=1e-4)
    assert text.supervised_spans == [[(1, len(ids))] for ids in text.input_ids]

    answers = guards["answers"].rows
    each = kl_divergence(base.logits(answers), supervised_logits(moved, answers)[0]).split(answers.supervised_lengths)
    assert scores["answers"] == pytest.approx([float(one.detach().mean()) for one in each], rel=1e-3)
    assert min(scores["answers"]) > 0


def test_a_choice_is_scored_by_its_log_likelihood_a_character(files):
    model = lora(files / "m", moved=True).eval()
    loaded = LoadedModel(model, PromptFormat.from_folder(files / "m"))
    guard = next(
        g
        for g in prepare_retention_evals(settings(), lambda: loaded, loaded.prompt_format, "id", None)
        if g.kind == "multiple_choice"
    )
    found = score_retention_eval(loaded, guard, ReferenceModel(model).logits)
    for item, score in zip(ITEMS, found, strict=True):
        likely = []
        for choice in item["choices"]:
            question, whole = (
                loaded.prompt_format.encode_text(f"Question: {item['question']}\nAnswer:{end}")
                for end in ("", " " + choice)
            )
            ids = torch.tensor([whole])
            log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
            total = sum(float(log_probs[n - 1, whole[n]].detach()) for n in range(len(question), len(whole)))
            likely.append(total / len(choice))
        assert score == (100.0 if int(np.argmax(likely)) == item["answer"] else 0.0)


def test_lines_say_what_guessing_would_give(files):
    loaded = LoadedModel(lora(files / "m"), PromptFormat.from_folder(files / "m"))
    guard = next(
        g
        for g in prepare_retention_evals(settings(), lambda: loaded, loaded.prompt_format, "id", None)
        if g.kind == "multiple_choice"
    )
    lines = retention_records(guard, [0.0] * 9)
    assert {record.chance_accuracy for record in lines} == {100 / 3} and lines[8].item == 9


def test_the_base_is_asked_once(files):
    asked = []
    loaded = LoadedModel(lora(files / "m"), PromptFormat.from_folder(files / "m"))

    def load():
        asked.append(1)
        return loaded

    for _ in range(2):
        prepare_retention_evals(settings(), load, loaded.prompt_format, "id", None)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        (
            '{"question": "a", "choices": ["b"], "answer": 0}',
            "choices",
            "rows.jsonl:1: choices needs two texts or more, found 1",
        ),
        ('{"question": "a", "choices": ["b", "c"], "answer": 2}', "choices", "rows.jsonl:1"),
        (
            '{"question": "a", "choices": ["b", "c"], "answer": "b"}',
            "choices",
            "the number of the right entry of choices, counted from 0",
        ),
        ('{"txt": "a"}', "text", "needs a text in `text`; the row has: txt; if txt is meant, rename it"),
        ('{"text": ""}', "text", "rows.jsonl:1"),
        ("", "text", "has no rows"),
        ("", "choices", "has no rows"),
        ('{"prompt": "a"}', "answers", "`instruction`"),
    ],
)
def test_bad_rows_are_named(files, rows, kind, words):
    (files / "rows.jsonl").write_text(rows + "\n")
    with pytest.raises(DataError, match=None) as error:
        check_retention_evals(Forgetting.model_validate({"evals": {"g": {"kind": kind, "data": "rows.jsonl"}}}))
    assert words in str(error.value)


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "B"},
        {"question_stem": "a", "choices": {"text": ["b", "c"], "label": ["1", "2"]}, "answerKey": "2"},
        {"goal": "a", "sol1": "b", "sol2": "c", "label": 1},
        {"ctx": "a", "endings": ["b", "c"], "label": "1", "ind": 4},
    ],
    ids=["arc", "openbookqa", "piqa", "hellaswag"],
)
def test_a_public_benchmark_is_read_as_it_comes(files, row):
    (files / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (item,) = read_multiple_choice(files / "rows.jsonl")
    assert (item.question, item.choices, item.answer) == ("a", ["b", "c"], 1)


def test_a_benchmark_row_without_its_answer_is_named(files):
    (files / "rows.jsonl").write_text(
        '{"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": ""}\n'
    )
    with pytest.raises(DataError, match="rows.jsonl:1: answer is the number"):
        read_multiple_choice(files / "rows.jsonl")


def test_a_file_of_the_hub_is_fetched_where_it_is_not_there_yet(files, monkeypatch):
    guard = RetentionEvalSettings(kind="choices", data="hub:some/benchmark/easy/test.jsonl")
    (files / "test.jsonl").write_text('{"goal": "a", "sol1": "b", "sol2": "c", "label": 1}\n')
    asked = []

    def download(*where, repo_type, local_files_only=False):
        asked.append((local_files_only, *where, repo_type))
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        return str(files / "test.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert len(read_multiple_choice(resolve_data_file(guard))) == 1
    where = ("some/benchmark", "easy/test.jsonl", "dataset")
    assert asked == [(True, *where), (False, *where)]


@pytest.mark.parametrize("data", ["hub:some", "hub:some/benchmark", "hub:"])
def test_a_name_that_is_no_file_of_the_hub(data):
    with pytest.raises(DataError, match="write hub:OWNER/NAME/FILE"):
        check_retention_evals(Forgetting.model_validate({"evals": {"g": {"kind": "text_nll", "data": data}}}))


def test_a_hub_out_of_reach_costs_one_line(monkeypatch):
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", mock.Mock(side_effect=LocalEntryNotFoundError("no connection\nmore"))
    )
    with pytest.raises(
        DataError, match=r"hub:a/b/c.jsonl: cannot be had from the hub \(no connection\); download the file"
    ):
        check_retention_evals(
            Forgetting.model_validate({"evals": {"g": {"kind": "text_nll", "data": "hub:a/b/c.jsonl"}}})
        )


def test_a_missing_column_of_a_task_guard_is_named(files):
    guard = {"kind": "task", "data": "task.jsonl", "prompt": "{nope}", "completion": "{a}"}
    with pytest.raises(DataError, match="task.jsonl:1.*nope"):
        check_retention_evals(Forgetting.model_validate({"evals": {"g": guard}}))


def test_choices_are_read_as_they_stand(files):
    assert read_multiple_choice(files / "choices.jsonl")[4].answer == 1


def test_a_guard_without_a_score_has_no_mean():
    guards = [PreparedRetentionEval("code", "task", "x"), PreparedRetentionEval("text", "text", "x")]
    found = {"code": [None, None], "text": [1.0, None, 2.0]}
    with mock.patch("pipelines.evaluation.retention.score_retention_eval", lambda _, guard, __: found[guard.name]):
        assert mean_scores(None, guards, None) == {"text": 1.5}  # a mean of nothing would be NaN


def test_an_own_metric_that_fails_on_an_answer_names_guard_and_row(files):
    (files / "only_yes.py").write_text("def f(completion, reference, row): return {'yes': 1, '': 0}[completion]\n")
    guard = {
        "kind": "task",
        "data": "task.jsonl",
        "prompt": "{q}?",
        "completion": "{a}",
        "metric": "only_yes:f",
        "max_new_tokens": 4,
    }
    check_retention_evals(settings(task=guard))
    loaded = LoadedModel(lora(files / "m", moved=True).eval(), PromptFormat.from_folder(files / "m"))
    prepared = {
        one.name: one
        for one in prepare_retention_evals(settings(task=guard), lambda: loaded, loaded.prompt_format, "id", None)
    }
    with pytest.raises(DataError, match="task 'task', row 1: metric only_yes:f raised KeyError"):
        score_retention_eval(loaded, prepared["task"], None)
