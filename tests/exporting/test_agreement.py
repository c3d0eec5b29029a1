"""Answers of an export against those of its run: equal, tied, close, or of another model."""

import pytest

from pipelines.exporting.agreement import MARGIN, Answer, measure_agreement
from pipelines.scoring.metric import metric_from_key
from pipelines.storage.records import CompletionRecord

METRICS = {"t": metric_from_key("exact_match"), "n": metric_from_key("nll")}


def record(text, row=1, task="t", tokens=3, **values):
    fields = {
        "task": task,
        "row": row,
        "prompt": "p",
        "reference": "yes",
        "completion": text,
        "reference_nll": None,
        "num_generated_tokens": tokens,
        "finish_reason": "stop",
        "fields": {"row": row},
    }
    return CompletionRecord(**{**fields, **values})


def answer(run="yes", export="yes", gap=0.0, row=1, run_tokens=(1, 2, 3), export_tokens=(1, 2, 3), choices=None):
    best = [-0.1] * len(run_tokens)
    own = [-0.1 - gap] * len(run_tokens)
    return Answer(
        record(run, row), record(export, row), run_tokens, export_tokens, own, best, choices or list(run_tokens)
    )


def measure(answers, must_be_equal=True):
    return measure_agreement(answers, METRICS, {}, must_be_equal)


def test_equal_answers_pass():
    result = measure([answer(row=row) for row in range(8)])
    assert (result.equal_answers, result.ties, result.first_difference_median, result.problems) == (8, 0, None, [])
    assert result.token_agreement == 100 and result.tasks["t"].run == result.tasks["t"].export == 100


@pytest.mark.parametrize(
    "change", [{"num_generated_tokens": 4}, {"finish_reason": "length"}, {"reasoning": "hm"}, {"completion": "Yes"}]
)
def test_an_answer_is_equal_in_text_thought_length_and_end(change):
    one = record("yes")
    assert not Answer(one, one.model_copy(update=change), (1,), (1,), [0.0], [0.0], [1]).is_equal
    assert Answer(one, one.model_copy(update={"reference_nll": 2.0}), (1,), (1,), [0.0], [0.0], [1]).is_equal


def test_a_tie_is_as_likely_up_to_rounding():
    tie = answer(export="no", export_tokens=(1, 5, 3), gap=5e-4, choices=[1, 5, 3])
    other = answer(export="no", export_tokens=(1, 5, 3), gap=5e-3, choices=[1, 5, 3])
    equal = [answer(row=row) for row in range(2, 9)]
    result = measure([tie, *equal])
    assert (result.equal_answers, result.ties, result.problems) == (7, 1, [])
    result = measure([other, *equal])
    assert result.first_difference_median == 2
    assert result.problems == [
        "1 of 8 answers differ from the run's, first at token 2; in this precision they must be equal"
    ]
    assert measure([other, *equal], must_be_equal=False).problems == []


def test_an_answer_that_is_cut_differs_after_its_last_token():
    cut = answer(export="ye", export_tokens=(1, 2))
    assert cut.first_difference == 2 and cut.is_tie  # the run's third token is as likely as any


def test_a_significant_decline_fails_whatever_the_precision():
    worse = [answer(export="no", row=row, export_tokens=(9, 2, 3)) for row in range(20)]
    same = [answer(row=row) for row in range(20, 40)]
    result = measure([*worse, *same], must_be_equal=False)
    assert len(result.problems) == 1 and "task t" in result.problems[0] and "−" not in result.problems[0]
    assert result.tasks["t"].delta == -50 and result.tasks["t"].ci95[1] < -MARGIN
    slightly = measure([worse[0], *same, *[answer(row=row) for row in range(40, 60)]], must_be_equal=False)
    assert slightly.problems == []
    better = [answer("no", "yes", row=row, export_tokens=(9, 2, 3)) for row in range(40)]
    assert measure(better, must_be_equal=False).problems == []


def test_another_model_fails_even_if_its_scores_are_as_bad():
    wrong = [answer("no", "hm", row=row, export_tokens=(9, 9), choices=[9, 9, 9]) for row in range(8)]
    assert "another model" in measure(wrong, must_be_equal=False).problems[0]


def test_a_loss_is_worse_if_it_is_higher():
    answers = []
    for row in range(12):
        run, export = record("", row, "n", reference_nll=1.0 + row / 100), record("", row, "n", reference_nll=1.5)
        answers.append(Answer(run, export, (1,), (1,), [0.0], [0.0], [1]))
    (problem,) = measure(answers, must_be_equal=False).problems
    assert "task n" in problem
