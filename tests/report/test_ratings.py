"""Blind ratings: the preference, its interval, the agreement of raters, invalid files."""

import json

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.errors import RunError
from pipelines.report.analysis import analyse
from pipelines.report.ratings import merge, read_ratings
from tests.report.run_folder import make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "r")


def ratings(run, rater, choices, /, **changes):
    """A file with a choice per row, from row 0; None: not rated."""
    analysis = analyse(run)
    content = {
        "format_version": 3,
        "run": analysis.manifest.name,
        "report": analysis.digest,
        "models": ["base", "tuned"],
        "rater": rater,
        "ratings": [
            {"task": "mood", "row": n, "answer": None, "prompt_index": None, "choice": choice}
            for n, choice in enumerate(choices)
            if choice
        ],
        **changes,
    }
    path = run.parent / f"{rater}.json"
    path.write_text(json.dumps(content))
    return path


def merged(run, *paths):
    analysis = analyse(run)
    return merge([read_ratings(path, analysis) for path in paths])


def test_one_rater(run):
    result = merged(run, ratings(run, "anna", ["tuned"] * 20 + ["base"] * 5 + ["tie"] * 3 + ["both bad"] * 2))
    assert result.counts == {"base": 5, "tuned": 20, "tie": 3, "both bad": 2}
    assert (result.comparison.n, result.comparison.delta) == (30, pytest.approx(50))
    assert 15 < result.comparison.ci95[0] < 50 < result.comparison.ci95[1]
    assert result.alpha is None and result.shared == 0


def test_several_raters_count_an_item_once(run):
    anna = ratings(run, "anna", ["tuned", "base", "tuned", "tie", "tuned", None])
    ben = ratings(run, "ben", ["tuned", "base", "base", "tie", None, "base"])
    result = merged(run, anna, ben)
    assert (result.comparison.n, result.shared) == (6, 4)
    assert result.comparison.delta == pytest.approx(100 * (1 - 1 + 0 + 0 + 1 - 1) / 6)


def test_alpha_by_hand(run):
    # Krippendorff 2011, Computing Krippendorff's alpha: two observers, nominal. Coincidences of these four items:
    # o(tuned, tuned) = 2, o(base, base) = 2, o(tuned, base) = o(base, tuned) = 1, o(tie, tie) = 2; n = 8.
    anna = ratings(run, "anna", ["tuned", "base", "tuned", "tie"])
    ben = ratings(run, "ben", ["tuned", "base", "base", "tie"])
    n, values = 8, {"tuned": 3, "base": 3, "tie": 2}
    expected = sum(count * (n - count) for count in values.values()) / (n * (n - 1))
    assert merged(run, anna, ben).alpha == pytest.approx(1 - (2 / n) / expected)
    assert merged(run, anna, ratings(run, "cleo", ["tuned", "base", "tuned", "tie"])).alpha == pytest.approx(1)


def test_equal_choices_have_no_alpha(run):
    assert merged(run, ratings(run, "anna", ["tuned"] * 4), ratings(run, "ben", ["tuned"] * 4)).alpha is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report": "0" * 64}, "rates other completions of this run"),
        ({"report": "0" * 64, "run": "other"}, "rates the run 'other'"),
        ({"format_version": 9}, "format_version"),
        ({"ratings": []}, "has no ratings"),
        (
            {"ratings": [{"task": "mood", "row": 1, "answer": None, "prompt_index": None, "choice": "left"}]},
            "the choice 'left'",
        ),
        ({"ratings": [{"task": "mood"}]}, "ratings.0.row: field required"),
    ],
)
def test_ratings_of_another_report_are_rejected(run, changes, message):
    path = ratings(run, "anna", ["tuned"], **changes)
    with pytest.raises(RunError, match=message):
        read_ratings(path, analyse(run))


@pytest.mark.parametrize("text", ["", "{", "[]", "\ud800".encode("utf-8", "surrogatepass"), "[" * 100_000])
def test_files_that_are_not_ratings_are_rejected(run, text):
    path = run.parent / "x.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunError, match="x.json"):
        read_ratings(path, analyse(run))


def test_two_files_of_one_rater_are_rejected(run):
    anna = read_ratings(ratings(run, "anna", ["tuned"]), analyse(run))
    with pytest.raises(RunError, match="two ratings files are of the rater 'anna'"):
        merge([anna, anna])


def test_on_the_command_line(run):
    paths = [
        ratings(run, name, ["tuned"] * 20 + ["tie"] * 5 + [last]) for name, last in (("anna", "base"), ("ben", "tie"))
    ]
    result = CliRunner().invoke(main, ["report", str(run), "--ratings", str(paths[0]), "--ratings", str(paths[1])])
    assert result.exit_code == 0
    assert "2 raters prefer tuned." in result.output and "Krippendorff" in result.output


def test_duplicate_and_unknown_items_are_rejected(run):
    entry = {"task": "mood", "row": 0, "answer": None, "prompt_index": None, "choice": "tuned"}
    for items, message in (
        ([entry, {**entry, "choice": "base"}], "rates mood/0 2 times"),
        ([{**entry, "row": 999}], "rates mood/999, which is not in this run"),
        ([{**entry, "task": None, "row": None, "prompt_index": 1}], "rates prompt 1, which is not in this run"),
    ):
        with pytest.raises(RunError, match=message):
            merged(run, ratings(run, "anna", [], ratings=items))
    path = ratings(run, "ben", ["tuned"])
    for text, message in (
        (path.read_text().replace('"choice"', '"choice": "base", "choice"'), "has the key 'choice' twice"),
        (path.read_text().replace('"ben"', '"b\\ud800"'), "unpaired surrogate"),
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=message):
            merged(run, path)
        path = ratings(run, "ben", ["tuned"])


def test_answers_of_one_row_are_rated_apart(run):
    """`evaluate_on: all` gives several answers per row, and files of a list have rows of the same number."""
    for model in ("base", "tuned"):
        path = run / model / "completions.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records[:3]:
            record["row"] = 0
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = json.loads((run / "base" / "completions.jsonl").read_text().splitlines()[0])["task"]
    entry = {"task": task, "row": 0, "prompt_index": None}
    items = [{**entry, "answer": answer, "choice": "tuned"} for answer in (1, 2, 3)]
    assert merged(run, ratings(run, "anna", [], ratings=items)).comparison.n == 3
    for wrong, message in (
        ([items[0], items[0]], f"rates {task}/0, answer 1 2 times"),
        ([{**items[0], "answer": 4}], "answer 4, which is not in this run"),
        ([{**items[0], "answer": None}], f"rates {task}/0, which is not in this run"),
    ):
        with pytest.raises(RunError, match=message):
            merged(run, ratings(run, "anna", [], ratings=wrong))
