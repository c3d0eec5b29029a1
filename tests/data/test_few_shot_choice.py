"""The number of examples in a prompt: the rows by which it is chosen, and the choice."""

from dataclasses import replace

import pytest

from pipelines.config.task import FewShotSettings
from pipelines.data.few_shot_choice import MIN_ROWS, choose_trial, few_shot_trials
from pipelines.data.prompt_format import PromptFormat
from tests.data.test_few_shot import example, tokenized
from tests.tiny_tokenizers import make_tokenizer

SETTINGS = FewShotSettings(k=[1, 2, 4])


def trials_of(examples, settings=SETTINGS, context_length=10_000, cluster_by=None, test_rows=()):
    prompt_format = PromptFormat(make_tokenizer("pad_is_eos"))
    prompt_format.context_length = context_length
    tested = [tokenized(one, prompt_format) for one in test_rows]
    candidates = [tokenized(one, prompt_format) for one in examples]
    return few_shot_trials("t", settings, tested, candidates, prompt_format, cluster_by), prompt_format


def training_rows(count, **values):
    return [example(f"q{number}.", f"a{number}", number, split="train", **values) for number in range(count)]


def test_every_number_is_tried_on_the_same_training_rows_after_the_examples():
    trials, prompt_format = trials_of(training_rows(20))
    assert [trial.k for trial in trials] == [1, 2, 4]
    for trial in trials:
        assert [row.example.row_number for row in trial.prompts.rows] == list(range(4, 20))
        text = prompt_format.tokenizer.decode(trial.prompts.rows[0].prompt_ids)
        assert [f"q{number}." in text for number in range(5)] == [number in (*range(trial.k), 4) for number in range(5)]


def test_copies_of_examples_and_rows_of_their_clusters_are_not_asked():
    rows = training_rows(20)
    rows[7] = replace(rows[7], prompt="q2.", completion="other")
    rows = [replace(row, fields={"group": row.row_number % 10}) for row in rows]
    asked = [row.example.row_number for row in trials_of(rows)[0][0].prompts.rows]
    assert asked == [4, 5, 6, *range(8, 20)]
    asked = [row.example.row_number for row in trials_of(rows, cluster_by="group")[0][0].prompts.rows]
    assert asked == [4, 5, 6, 8, 9, *range(14, 20)]


def test_neither_examples_nor_rows_that_are_asked_are_test_rows():
    rows = training_rows(20)
    trials, _ = trials_of(rows, test_rows=[rows[1], rows[10]])
    assert trials[1].prompts.summary.examples == ["rows.jsonl:0", "rows.jsonl:2"]
    assert [row.example.row_number for row in trials[0].prompts.rows] == [5, 6, 7, 8, 9, *range(11, 20)]


def test_there_is_nothing_to_choose():
    assert trials_of(training_rows(4 + MIN_ROWS))[0]
    assert trials_of(training_rows(4 + MIN_ROWS - 1))[0] == []
    assert trials_of(training_rows(20), FewShotSettings(k=4))[0] == []
    assert trials_of(training_rows(20), FewShotSettings(k=[4]))[0] == []


def test_numbers_that_do_not_fit_the_context_are_not_tried():
    lengths = [len(trial.prompts.rows[0].prompt_ids) for trial in trials_of(training_rows(20))[0]]
    trials, _ = trials_of(training_rows(20), context_length=lengths[1] + 20)
    assert [trial.k for trial in trials] == [1, 2]
    assert trials_of(training_rows(20), context_length=lengths[0] + 12)[0] == []


@pytest.mark.parametrize(
    ("scores", "higher_is_better", "best", "results"),
    [
        ({1: [0, 100], 2: [100, 100], 4: [100, 0]}, True, 2, "1: 50, 2: 100, 4: 50"),
        ({1: [0, 100], 2: [100, 0], 4: [0, 0]}, True, 1, "1: 50, 2: 50, 4: 0"),  # the fewest of equal ones
        ({1: [2.5, 3], 2: [2.0, 1.5], 4: [2, 2]}, False, 2, "1: 2.75, 2: 1.75, 4: 2"),
        ({1: [0, 100], 2: [None, 0], 4: [100, 50]}, True, 1, "1: 100, 2: 0, 4: 50"),  # only rows that all have
        ({1: [None, 1], 2: [0, None], 4: [100, 50]}, True, 1, "1: 0, 2: 0, 4: 0"),
    ],
)
def test_the_best_mean_score_decides(scores, higher_is_better, best, results):
    trials = [
        replace(trial, prompts=replace(trial.prompts, rows=trial.prompts.rows[:2]))
        for trial in trials_of(training_rows(20))[0]
    ]
    chosen, note = choose_trial(trials, scores, higher_is_better=higher_is_better)
    assert chosen.k == best and f"(mean score by number: {results})" in note
    assert note.startswith(f"{best} example")
