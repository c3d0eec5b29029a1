"""The base with examples in its prompt: its statistics against other implementations, and what every form says."""

import io
import json
import random

import numpy as np
import pytest
import yaml
from rich.console import Console
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from pipelines.errors import RunError
from pipelines.report import analyse, write_report
from pipelines.report.examples import print_examples
from pipelines.report.few_shot import worth_of_tuning
from pipelines.report.terminal import print_summary
from tests.report.run_folder import add_few_shot, line, write_run


def label_run(folder, base, few_shot, tuned, task="mood", **values):
    """A run of a label task whose reference is yes; an answer is right if it is true."""
    sides = [
        [line(task, number, f"p{number}", "yes", "yes" if right else "no") for number, right in enumerate(answers)]
        for answers in (base, tuned)
    ]
    write_run(folder, {task: "exact_match"}, *sides)
    return add_few_shot(folder, {task: ["yes" if right else "no" for right in few_shot]}, **values)


def right(share, count=200, seed=0):
    rng = random.Random(seed)
    return [rng.random() < share for _ in range(count)]


def test_binary_scores_are_compared_as_statsmodels_does(tmp_path):
    few_shot, tuned = right(0.5, seed=1), right(0.7, seed=2)
    task = analyse(label_run(tmp_path / "r", [False] * 200, few_shot, tuned)).tasks["mood"]
    table = np.zeros((2, 2), dtype=int)
    for before, after in zip(few_shot, tuned, strict=True):
        table[int(before), int(after)] += 1
    comparison = task.few_shot.comparison
    assert comparison.p_value == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert (task.few_shot.num_better, task.few_shot.num_worse) == (table[0, 1], table[1, 0])
    # Bonett and Price (2012), with one row added to each kind of change
    n, up, down = table.sum() + 2, table[0, 1] + 1, table[1, 0] + 1
    center = (up - down) / n
    half = stats.norm.isf(0.025) * np.sqrt(((up + down) / n - center**2) / n)
    assert comparison.ci95 == pytest.approx((100 * (center - half), 100 * (center + half)))
    assert (comparison.base, comparison.tuned) == pytest.approx((100 * np.mean(few_shot), 100 * np.mean(tuned)))


def text_run(folder, tasks=2, rows=40):
    rng = np.random.default_rng(3)
    scores = {f"t{n}": rng.normal([1.6, 1.4 + n / 10, 1.3], 0.3, (rows, 3)) for n in range(tasks)}
    sides = [
        [
            line(name, row, f"p{row}", "r", "x", reference_nll=float(values[row, side]))
            for name, values in scores.items()
            for row in range(rows)
        ]
        for side in range(3)
    ]
    write_run(folder, dict.fromkeys(scores, "nll"), sides[0], sides[2])
    add_few_shot(folder, {name: ["x"] * rows for name in scores})
    (folder / "few_shot" / "completions.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in sides[1]))
    return folder, scores


def test_other_scores_are_compared_as_scipy_does(tmp_path):
    folder, scores = text_run(tmp_path / "r")
    tasks = analyse(folder).tasks
    p_values = []
    for name, values in scores.items():
        difference = values[:, 2] - values[:, 1]
        expected = stats.permutation_test(
            (difference,), np.mean, permutation_type="samples", n_resamples=50_000, rng=np.random.default_rng(9)
        ).pvalue
        result = tasks[name].few_shot
        assert result.comparison.p_value == pytest.approx(expected, abs=0.01)
        assert result.gain == pytest.approx(-difference.mean())  # a lower loss is better
        interval = stats.bootstrap((difference,), np.mean, n_resamples=9999, rng=np.random.default_rng(8))
        assert result.comparison.ci95 == pytest.approx(tuple(interval.confidence_interval), abs=0.02)
        p_values.append(result.comparison.p_value)
    holm = multipletests(p_values, method="holm")[1]
    assert [tasks[name].few_shot.p_holm for name in scores] == pytest.approx(list(holm))


@pytest.mark.parametrize(
    ("base", "few_shot", "tuned", "sentence"),
    [
        (0.0, 0.4, 0.8, "Tuning was worth it on mood (+{gain} points beyond 4 examples in the prompt, 95 % CI +"),
        (0.0, 0.79, 0.8, "Tuning was not shown to be worth it on mood (4 examples in the prompt may do as well: gain"),
        (0.1, 0.9, 0.5, "Tuning was not worth it on mood (4 examples in the prompt score higher: gain beyond that −"),
        (0.9, 0.3, 0.5, "Tuning was not worth it on mood (the base scores higher without any tuning)."),
        (
            0.8,
            0.3,
            0.8,
            "Tuning was not shown to be worth it on mood (better than with examples in the prompt, but not",
        ),
    ],
)
def test_whether_tuning_was_worth_it(tmp_path, base, few_shot, tuned, sentence):
    answers = [right(share, 400, seed) for seed, share in enumerate((base, few_shot, tuned))]
    analysis = analyse(label_run(tmp_path / "r", *answers))
    gain = f"{analysis.tasks['mood'].few_shot.gain:.1f}"
    (found,) = worth_of_tuning(analysis)
    assert found.startswith(sentence.format(gain=gain)), found


def test_every_form_says_it(tmp_path):
    folder = label_run(tmp_path / "r", right(0.1), right(0.5, seed=1), right(0.9, seed=2), notes=["Fewer, because."])
    analysis = write_report(folder)
    console = Console(record=True, width=160, file=io.StringIO())
    print_summary(analysis, console)
    print_examples(analysis, analysis.examples[:1], console)
    terminal = console.export_text()
    (sentence,) = worth_of_tuning(analysis)
    report = json.loads((folder / "report.json").read_text())
    assert report["worth_of_tuning"] == [sentence]
    assert report["tasks"]["mood"]["few_shot"]["k"] == 4
    assert report["examples"][0]["few_shot"]["text"] in ("yes", "no")
    page, markdown = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    for text in (page.replace("\u00a0", " "), markdown, terminal):
        assert sentence in text and "Base + 4 examples" in text and "Fewer, because." in text
    assert page.index("worth it on mood") < page.index('id="scores"')
    assert 'class="few-shot"' in page and "Gain beyond 4 examples in the prompt" in markdown


def test_a_run_without_examples_has_two_columns(tmp_path):
    folder = label_run(tmp_path / "r", right(0.1), right(0.5, seed=1), right(0.9, seed=2), k=0)
    (folder / "few_shot" / "completions.jsonl").write_text("")
    analysis = write_report(folder)
    assert worth_of_tuning(analysis) == [] and analysis.tasks["mood"].few_shot is None
    assert "example" not in (folder / "report.md").read_text().split("<details>")[0]


@pytest.mark.parametrize(("required", "passed"), [(20, True), (60, False)])
def test_a_gate_on_the_gain_beyond_examples(tmp_path, required, passed):
    folder = label_run(tmp_path / "r", right(0.0), right(0.5, seed=1), right(0.95, seed=2))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["pipeline"]["report"] = {"gates": {"mood": {"min_gain": 5, "min_gain_beyond_few_shot": required}}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    gates = analyse(folder).gates
    assert {gate.summary.split(" of at least")[0]: gate.passed for gate in gates} == {
        "required: a gain": True,
        "required: a gain beyond 4 examples in the prompt": passed,
    }
    for path in (folder / "few_shot").iterdir():
        path.unlink()
    assert [gate.passed for gate in analyse(folder).gates] == [False, True]


def test_completions_of_other_rows_are_refused(tmp_path):
    folder = label_run(tmp_path / "r", right(0.1), right(0.5, seed=1), right(0.9, seed=2))
    path = folder / "few_shot" / "completions.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(RunError, match=r"few_shot.completions\.jsonl: not the rows that base has; delete the folder"):
        analyse(folder)


def test_one_answer_for_all_prompts_is_a_caveat(tmp_path):
    task = analyse(label_run(tmp_path / "r", right(0.1), [True] * 200, right(0.9, seed=2))).tasks["mood"]
    assert "Base + 4 examples always answers “yes”, whatever the prompt is." in task.caveats


def test_an_instruction_is_named(tmp_path):
    for k, given in ((0, "an instruction"), (2, "2 examples and an instruction")):
        folder = label_run(
            tmp_path / str(k), right(0.1), right(0.5, seed=1), right(0.9, seed=2), k=k, instruction="Be."
        )
        analysis = write_report(folder)
        assert f" beyond {given} in the prompt, 95 % CI" in worth_of_tuning(analysis)[0]
        assert f"Base + {given.replace('an instruction', 'instruction')}" in (folder / "report.md").read_text()
