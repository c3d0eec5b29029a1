"""Votes of `alfine serve`: the file, what counts for the test rows, and the preference on the raters' own prompts."""

import json

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.errors import RunError
from pipelines.report.analysis import analyse
from pipelines.report.ratings import merge
from pipelines.report.votes import (
    Turn,
    Vote,
    VoteSettings,
    append_vote,
    prompt_preference,
    ratings_of_test_rows,
    read_votes,
)
from tests.report.run_folder import line, make_run, write_run

GREEDY = VoteSettings(temperature=0.0, max_tokens=32, seed=None)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "r")


def vote(number, choice, /, rater="anna", prompt="say it", **changes):
    """A vote on a prompt of the rater's own."""
    values = {
        "id": f"conversation-{number}",
        "rater": rater,
        "task": None,
        "row": None,
        "answer": None,
        "system": "Answer briefly.",
        "turns": [Turn(prompt=prompt, base="long", tuned="short")],
        "settings": GREEDY,
        "left": "tuned",
        "choice": choice,
        "format_version": 1,
        "run": "r",
        "time": "2026-01-01T00:00:00Z",
    }
    return Vote(**{**values, **changes})


def row_vote(analysis, row, choice, /, rater="anna", **changes):
    """A vote on the stored completions of a test row."""
    example = analysis.examples[row]
    turn = Turn(prompt=example.prompt, base=example.base, tuned=example.tuned)
    shown = {"task": example.task, "row": example.row, "system": None, "turns": [turn], "settings": None}
    return vote(f"{rater}-{row}", choice, rater=rater, **{**shown, **changes})


def written(path, votes):
    for one in votes:
        append_vote(path, one)
    return path


def test_the_file_keeps_every_vote_and_the_last_one_of_a_conversation_counts(tmp_path):
    path = written(tmp_path / "votes.jsonl", [vote(1, "base"), vote(2, "tie"), vote(1, "tuned", rater="ben\u2028\n")])
    assert len(path.read_text().split("\n")) == 4
    assert [(one.id, one.choice, one.rater) for one in read_votes(path)] == [
        ("conversation-2", "tie", "anna"),
        ("conversation-1", "tuned", "ben\u2028\n"),
    ]


def test_a_line_that_was_cut_costs_only_itself(tmp_path):
    path = written(tmp_path / "votes.jsonl", [vote(1, "base")])
    path.write_bytes(path.read_bytes() + b'{"id": "conv')
    append_vote(path, vote(2, "tuned"))
    with pytest.raises(RunError, match="votes.jsonl:2: is not a vote of alfine serve, or was cut; delete the line"):
        read_votes(path)
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], *lines[2:]]))
    assert [one.choice for one in read_votes(path)] == ["base", "tuned"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choice": "left"}, "choice: "),
        ({"format_version": 2}, "format_version: "),
        ({"turns": []}, "turns: "),
        ({"id": "../../x/y/z"}, "id: "),
        ({"rater": "x" * 81}, "rater: "),
        ({"extra": 1}, "extra: "),
    ],
)
def test_lines_that_are_no_votes_are_named(tmp_path, change, message):
    path = written(tmp_path / "votes.jsonl", [vote(1, "base")])
    value = {**json.loads(path.read_text()), **change}
    path.write_text(path.read_text() + json.dumps(value) + "\n")
    with pytest.raises(RunError, match=f"votes.jsonl:2: {message}.*; delete the line"):
        read_votes(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b"{}", b"null"])
def test_files_that_are_no_votes_are_refused(tmp_path, content):
    path = tmp_path / "votes.jsonl"
    path.write_bytes(content)
    with pytest.raises(RunError, match="votes.jsonl"):
        read_votes(path)
    with pytest.raises(RunError, match="no such file"):
        read_votes(tmp_path / "other.jsonl")


def test_votes_on_test_rows_are_ratings_of_the_stored_completions(run):
    analysis = analyse(run)
    votes = [row_vote(analysis, n, ["tuned", "base", "tie"][n % 3]) for n in range(6)]
    votes += [row_vote(analysis, n, "tuned", rater="ben") for n in range(3)]
    files, num_other = ratings_of_test_rows([*votes, vote(1, "base")], analysis)
    preference = merge(files)
    assert num_other == 0 and preference.raters == ["anna", "ben"]
    assert preference.counts == {"base": 2, "tuned": 5, "tie": 2, "both bad": 0}
    assert (preference.comparison.n, preference.shared) == (6, 3)


def test_votes_on_other_completions_of_a_row_do_not_count(run):
    analysis = analyse(run)
    changed = Turn(prompt="review 0", base="other", tuned="positive")
    votes = [
        row_vote(analysis, 0, "tuned", turns=[changed]),
        row_vote(analysis, 1, "tuned", row=999),
        row_vote(analysis, 2, "tuned", task="other"),
        row_vote(analysis, 3, "tuned"),
    ]
    files, num_other = ratings_of_test_rows(votes, analysis)
    assert num_other == 3 and [rating.row for rating in files[0].ratings] == [3]


def test_a_prompt_counts_once_however_often_it_was_voted_on():
    votes = [vote(n, "tuned", prompt="p0", settings=GREEDY.model_copy(update={"temperature": 0.8})) for n in range(20)]
    votes += [vote(30 + n, ["base", "tie", "both bad"][n], prompt=f"p{n + 1}", rater="ben ") for n in range(3)]
    result = prompt_preference(votes)
    assert result.counts == {"base": 1, "tuned": 20, "tie": 1, "both bad": 1}
    assert (result.comparison.n, result.comparison.delta, result.num_sampled) == (4, pytest.approx(0), 20)
    assert result.raters == ["anna", "ben"]


def test_votes_on_test_rows_are_not_pooled_with_those_on_other_prompts(run):
    analysis = analyse(run)
    assert prompt_preference([row_vote(analysis, 0, "tuned")]) is None
    assert ratings_of_test_rows([vote(1, "tuned")], analysis) == ([], 0)


def test_on_the_command_line(run):
    analysis = analyse(run)
    votes = [row_vote(analysis, n, "tuned") for n in range(20)] + [row_vote(analysis, 0, "tuned", row=999)]
    votes += [vote(n, "base", prompt=f"p{n}") for n in range(20)]
    path = written(run / "votes.jsonl", votes)
    result = CliRunner().invoke(main, ["report", str(run), "--ratings", str(path)])
    assert result.exit_code == 0, result.output
    output = " ".join(result.output.split())
    assert "1 rater prefer tuned." in output and "On prompts of their own, 1 rater prefer base." in output
    assert "20 prompts: base 20, tuned 0, tie 0, both bad 0." in output
    assert "so the result is about them and not about the test rows" in output
    assert "1 vote on other completions of the test rows: not counted." in output


def test_a_file_without_votes_is_refused(run):
    (run / "votes.jsonl").write_text("\n")
    result = CliRunner().invoke(main, ["report", str(run), "--ratings", str(run / "votes.jsonl")])
    assert result.exit_code == 2 and "has no votes" in result.output


def test_votes_and_an_export_of_one_rater_are_not_counted_twice(run):
    analysis = analyse(run)
    written(run / "votes.jsonl", [row_vote(analysis, 0, "tuned")])
    (files, _) = ratings_of_test_rows(read_votes(run / "votes.jsonl"), analysis)
    (run / "anna.json").write_text(files[0].model_dump_json())
    arguments = ["report", str(run), "--ratings", str(run / "votes.jsonl"), "--ratings", str(run / "anna.json")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "two ratings files are of the rater 'anna'" in result.output


def test_answers_of_one_row_are_kept_apart(tmp_path):
    completions = [
        [line("mood", 1, f"turn {n}", "good", f"{model} {n}") for n in range(2)] for model in ("base", "tuned")
    ]
    analysis = analyse(write_run(tmp_path / "r", {"mood": "rouge"}, *completions))
    votes = [row_vote(analysis, n, ["tuned", "base"][n], answer=n + 1) for n in range(2)]
    (file,), num_other = ratings_of_test_rows(votes, analysis)
    assert num_other == 0
    assert [(rating.answer, rating.choice) for rating in file.ratings] == [(1, "tuned"), (2, "base")]
    assert ratings_of_test_rows([row_vote(analysis, 0, "tuned")], analysis) == ([], 1), "which answer is not known"
