"""Votes from the page of `alfine serve`: a JSON Lines file, appended to vote by vote, that `alfine report` evaluates.

There are two kinds of votes, which are never pooled:

- A vote on a test row is on the stored completions of the run. The server draws the rows in one random order for all
  raters, so those that a rater has seen are a random sample of the test rows, whenever the rater stops. It is a blind
  rating like those of the report page, see `pipelines.report.ratings`.
- A vote on a prompt that the rater wrote is on new completions. The prompts are no sample of the test rows, so the
  result describes the raters' prompts only.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import Problem, RunError
from pipelines.report.formatting import BASE_AND_TUNED
from pipelines.report.ratings import BOTH_BAD, TIE, Rating, RatingsFile
from pipelines.report.results import Analysis, ExampleComparison
from pipelines.scoring.statistics import Comparison, compare
from pipelines.storage.records import ModelText
from pipelines.storage.strict_json import StrictJsonError, dump, parse

VOTES_FILE = "votes.jsonl"
"""The file of the votes in the folder of a run."""
MAX_RATER = 80
"""Characters of the name of a rater."""
Model = Literal["base", "tuned"]


class Turn(BaseModel):
    """A prompt and the answers of both models."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    prompt: ModelText = Field(description="Prompt: the rater's text, or the template of a task filled with it.")
    base: ModelText = Field(description="Answer of the base, without the reasoning before it.")
    tuned: ModelText = Field(description="Answer of the tuned model, without the reasoning before it.")


class VoteSettings(BaseModel):
    """The settings of new completions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    temperature: float = Field(description="Temperature; 0 is greedy decoding.")
    max_tokens: int = Field(description="Limit of an answer in tokens.")
    seed: int | None = Field(description="Seed of the sampling; null if there was none.")


class Ballot(BaseModel):
    """A vote as the page sends it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    id: Annotated[str, Field(pattern="^[0-9a-zA-Z-]{8,64}$")] = Field(
        description="Identifier of the conversation. Its last vote counts."
    )
    rater: Annotated[ModelText, Field(max_length=MAX_RATER)] = Field(description="Name of the rater.")
    task: ModelText | None = Field(description="Task whose template made the prompt; null for a free prompt.")
    row: int | None = Field(description="Test row whose stored completions were shown; null for new completions.")
    answer: int | None = Field(description="Number of the answer among those of its row, from 1; null if it has one.")
    system: ModelText | None = Field(description="System turn of new completions; null if there was none.")
    turns: Annotated[list[Turn], Field(min_length=1)] = Field(description="Turns of the conversation.")
    settings: VoteSettings | None = Field(description="Settings of new completions; null for a test row.")
    left: Model = Field(description="Model whose answers were on the left.")
    choice: Literal["base", "tuned", "tie", "both bad"] = Field(description="Preferred model, `tie` or `both bad`.")


class Vote(Ballot):
    """A line of the file."""

    format_version: Literal[1] = Field(description="Version of this format.")
    run: str = Field(description="Name of the run.")
    time: str = Field(description="Time of the vote in UTC, in ISO 8601.")

    @property
    def prompts(self) -> tuple[str | None, ...]:
        """The system turn and the prompts. Votes with equal ones are on the same item."""
        return (self.system, *(turn.prompt for turn in self.turns))


@dataclass(frozen=True)
class PromptPreference:
    """The votes on prompts that the raters wrote."""

    raters: list[str]
    counts: dict[str, int]
    """The number of votes by model, `tie` and `both bad`."""
    comparison: Comparison
    """Per prompt, the mean of its votes: +100 for the tuned model and −100 for the base, compared with 0."""
    num_sampled: int
    """The votes on answers that were sampled with a temperature over 0."""


def append_vote(path: Path, vote: Vote) -> None:
    """Appends a line and flushes it to disk. Raises OSError.

    A last line that was cut, by a full disk or a killed process, is ended first, so that only that line is lost.
    """
    line = (dump(vote.model_dump(mode="json")) + "\n").encode()
    with FileLock(path.with_name(path.name + ".lock"), timeout=10), path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                line = b"\n" + line
        try:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(path, end)  # no half of a line
            raise


def read_votes(path: Path) -> list[Vote]:
    """The votes of a file, the last one of each conversation. Raises RunError with the line of an invalid one."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise RunError(Problem("there is no such file", str(path))) from None
    except OSError as error:
        raise RunError(Problem(f"cannot be read: {str(error.strerror).lower()}", str(path))) from None
    except ValueError:
        raise RunError(Problem("is not UTF-8, as the votes of alfine serve are", str(path))) from None
    votes: dict[str, Vote] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            vote = _parse_vote(line, path, number)
            votes.pop(vote.id, None)
            votes[vote.id] = vote
    return list(votes.values())


def _parse_vote(line: str, path: Path, number: int) -> Vote:
    try:
        # As JSON, not as Python's values: in strict mode, pydantic accepts a list for a tuple in JSON only.
        return Vote.model_validate_json(dump(parse(line)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the line"
        message = f"{key}: {first['msg'].lower()}; delete the line"
    except StrictJsonError as error:
        message = f"{error}; delete the line"
    except ValueError:
        message = "is not a vote of alfine serve, or was cut; delete the line"
    raise RunError(Problem(message, str(path), number))


def is_votes_file(path: Path) -> bool:
    """Whether a file for `--ratings` has votes of `alfine serve`. Raters export JSON from the report page."""
    return path.suffix.lower() == ".jsonl"


def ratings_of_test_rows(votes: Iterable[Vote], analysis: Analysis) -> tuple[list[RatingsFile], int]:
    """The votes on test rows as ratings, one file per rater, and the number of votes on other completions.

    Votes are on the completions that were shown. They count if the report has the same ones. A rater's last vote on a
    row counts.
    """
    examples = {(example.task, example.row, example.answer): example for example in analysis.examples}
    ratings: dict[str, dict[tuple[str, int, int | None], Rating]] = defaultdict(dict)
    num_other = 0
    for vote in votes:
        if vote.task is None or vote.row is None:
            continue
        key = (vote.task, vote.row, vote.answer)
        example = examples.get(key)
        if example is None or not _shows(vote, example):
            num_other += 1
            continue
        rating = Rating(task=vote.task, row=vote.row, answer=vote.answer, prompt_index=None, choice=vote.choice)
        ratings[vote.rater.strip()][key] = rating
    name, digest = analysis.manifest.name, analysis.digest
    files = [
        RatingsFile(
            format_version=3, run=name, report=digest, models=BASE_AND_TUNED, rater=rater, ratings=list(chosen.values())
        )
        for rater, chosen in ratings.items()
    ]
    return files, num_other


def _shows(vote: Vote, example: ExampleComparison) -> bool:
    return len(vote.turns) == 1 and (vote.turns[0].base, vote.turns[0].tuned) == (example.base, example.tuned)


def prompt_preference(votes: Sequence[Vote]) -> PromptPreference | None:
    """The votes on prompts that the raters wrote; None if there are none. A prompt with several votes counts once."""
    votes = [vote for vote in votes if vote.row is None]
    if not votes:
        return None
    values = {"base": -100.0, "tuned": 100.0, TIE: 0.0, BOTH_BAD: 0.0}
    by_prompt: dict[tuple[str | None, ...], list[float]] = defaultdict(list)
    for vote in votes:
        by_prompt[vote.prompts].append(values[vote.choice])
    means = [sum(scores) / len(scores) for scores in by_prompt.values()]
    frequencies: Counter[str] = Counter(vote.choice for vote in votes)
    return PromptPreference(
        raters=sorted({vote.rater.strip() for vote in votes}),
        counts={choice: frequencies[choice] for choice in ("base", "tuned", TIE, BOTH_BAD)},
        comparison=compare([0.0] * len(means), means, binary=False),
        num_sampled=sum(vote.settings is not None and vote.settings.temperature > 0 for vote in votes),
    )
