"""Blind ratings: the JSON files that raters export from the report page, merged into a preference."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import krippendorff
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import Problem, RunError
from pipelines.report.results import Analysis
from pipelines.scoring.statistics import Comparison, compare
from pipelines.storage.strict_json import StrictJsonError, dump, parse

TIE, BOTH_BAD = "tie", "both bad"
EXPORT_HINT = "export it again from the page of this run"


class Rating(BaseModel):
    """One choice of a rater."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: str | None = Field(description="Task of the test row; null for a sample prompt.")
    row: int | None = Field(description="Test row; null for a sample prompt.")
    answer: int | None = Field(
        description="Number of the answer among those of the row, from 1; null for a row with one, and a sample prompt."
    )
    prompt_index: int | None = Field(description="Index of the sample prompt from 0; null for a test row.")
    choice: str = Field(description="Name of the preferred model, `tie` or `both bad`.")

    @property
    def item(self) -> str:
        """The rated item in words."""
        if self.prompt_index is not None:
            return f"prompt {self.prompt_index}"
        return _test_row(self.task, self.row, self.answer)


def _test_row(task: str | None, row: int | None, answer: int | None) -> str:
    """A rated test row in words, unique within a run."""
    return f"{task}/{row}" + (f", answer {answer}" if answer is not None else "")


class RatingsFile(BaseModel):
    """The file that the page exports."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format_version: Literal[3] = Field(description="Version of this format.")
    run: str = Field(description="Name of the run.")
    report: str = Field(description="Digest of the rated completions, as in report.json.")
    models: tuple[str, str] = Field(description="Names of the two models.")
    rater: str = Field(description="Name of the rater.")
    ratings: list[Rating] = Field(description="Choices in the order in which they were made.")


@dataclass(frozen=True)
class Preference:
    """The merged choices of all raters."""

    raters: list[str]
    counts: dict[str, int]
    """The number of choices by model, `tie` and `both bad`."""
    comparison: Comparison
    """Per item, +100 if all raters prefer the tuned model and −100 if all prefer the base, compared with 0."""
    alpha: float | None
    """Krippendorff's alpha over the four choices (1: perfect agreement, 0: chance agreement).

    None with one rater, if no item was rated twice, and if all choices are the same.
    """
    shared: int
    """The number of items with more than one rater."""


def read_ratings(path: Path, analysis: Analysis) -> RatingsFile:
    """Reads a ratings file. Raises RunError if it is missing or invalid, or has ratings of other completions."""
    try:
        # As JSON, not as Python's values: in strict mode, pydantic accepts a list for a tuple in JSON only.
        ratings = RatingsFile.model_validate_json(dump(parse(path.read_text(encoding="utf-8-sig"))))
    except FileNotFoundError:
        raise RunError(Problem("there is no such file", str(path))) from None
    except OSError as error:
        raise RunError(Problem(f"cannot be read: {str(error.strerror).lower()}", str(path))) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RunError(Problem(f"{key or 'the file'}: {first['msg'].lower()}; {EXPORT_HINT}", str(path))) from None
    except StrictJsonError as error:
        raise RunError(Problem(f"{error}; {EXPORT_HINT}", str(path))) from None
    except ValueError:
        raise RunError(Problem(f"is not the JSON that the report page exports; {EXPORT_HINT}", str(path))) from None
    _check_ratings(ratings, analysis, path)
    return ratings


def _check_ratings(ratings: RatingsFile, analysis: Analysis, path: Path) -> None:
    """Raises RunError for ratings of other completions, unknown choices, and unknown or duplicate items."""
    if ratings.report != analysis.digest:
        run = analysis.manifest.name
        about = f"rates the run {ratings.run!r}" if ratings.run != run else "rates other completions of this run"
        raise RunError(Problem(f"{about}, not the present completions of {run!r}; {EXPORT_HINT}", str(path)))
    if not ratings.ratings:
        raise RunError(Problem("has no ratings", str(path)))
    choices = {*ratings.models, TIE, BOTH_BAD}
    for rating in ratings.ratings:
        if rating.choice not in choices:
            valid = ", ".join(sorted(choices))
            raise RunError(Problem(f"has the choice {rating.choice!r}; valid choices are {valid}", str(path)))
    items = {_test_row(example.task, example.row, example.answer) for example in analysis.examples}
    items |= {f"prompt {index}" for index in range(len(analysis.sample_prompts))}
    for item, frequency in Counter(rating.item for rating in ratings.ratings).items():
        if item not in items:
            raise RunError(Problem(f"rates {item}, which is not in this run; {EXPORT_HINT}", str(path)))
        if frequency > 1:
            raise RunError(Problem(f"rates {item} {frequency} times; keep one rating, or {EXPORT_HINT}", str(path)))


def merge(files: Sequence[RatingsFile]) -> Preference:
    """The preference of all raters. An item with several ratings counts once, with their mean.

    Raises RunError if two files have the same rater, who would count twice.
    """
    names = [file.rater.strip() or f"rater {position}" for position, file in enumerate(files, 1)]
    duplicates = [name for name, frequency in Counter(names).items() if frequency > 1]
    if duplicates:
        raise RunError(
            f"two ratings files are of the rater {duplicates[0]!r}; give one file per rater, or change a name"
        )
    base, tuned = files[0].models
    values = {base: -100.0, tuned: 100.0, TIE: 0.0, BOTH_BAD: 0.0}
    choices = [{rating.item: rating.choice for rating in file.ratings} for file in files]
    values_by_item: dict[str, list[float]] = defaultdict(list)
    for rater_choices in choices:
        for item, choice in rater_choices.items():
            values_by_item[item].append(values[choice])
    means = [sum(item_values) / len(item_values) for item_values in values_by_item.values()]
    frequencies = Counter(choice for rater_choices in choices for choice in rater_choices.values())
    return Preference(
        raters=names,
        counts={choice: frequencies[choice] for choice in values},
        comparison=compare([0.0] * len(means), means, binary=False),
        alpha=_krippendorff_alpha(choices, list(values)),
        shared=sum(len(item_values) > 1 for item_values in values_by_item.values()),
    )


def _krippendorff_alpha(choices: Sequence[Mapping[str, str]], domain: list[str]) -> float | None:
    """Krippendorff's nominal alpha. (Krippendorff, Content Analysis, 4th ed. 2018, ch. 12.)"""
    raters = Counter(item for rater_choices in choices for item in rater_choices)
    items = sorted(item for item, frequency in raters.items() if frequency > 1)
    values = np.array(
        [
            [domain.index(rater_choices[item]) if item in rater_choices else np.nan for item in items]
            for rater_choices in choices
        ]
    )
    if not items or len(set(values[~np.isnan(values)])) < 2:
        return None
    return float(krippendorff.alpha(values, level_of_measurement="nominal", value_domain=list(range(len(domain)))))
