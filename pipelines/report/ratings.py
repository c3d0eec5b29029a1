"""Blind ratings: the JSON files that the report page exports, one a rater, merged into a preference."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.errors import Problem, RunError
from pipelines.scoring.statistics import Comparison, compare
from pipelines.storage.strict_json import StrictJsonError, dump, parse

if TYPE_CHECKING:
    from pipelines.report.results import Analysis

FORMAT_VERSION = 1
TIE, BOTH_BAD = "tie", "both bad"
AGAIN = "export it again from the page of this run"


class Rating(BaseModel):
    """One answer of one rater: about a test row, or, where `prompt_number` is given, a free prompt."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    task: str | None
    row: int | None
    prompt_number: int | None
    choice: str

    @property
    def item(self) -> str:
        return f"prompt {self.prompt_number}" if self.prompt_number is not None else f"{self.task}/{self.row}"


class RatingsFile(BaseModel):
    """What the page exports. `report` is the digest of the completions that were rated."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format_version: Literal[1]
    run: str
    report: str
    sides: tuple[str, str]
    rater: str
    ratings: list[Rating]


@dataclass(frozen=True)
class Preference:
    """The raters' choices together. `comparison` is per item: +100 where all raters prefer the tuned side."""

    raters: list[str]
    counts: dict[str, int]
    """Choices by the side's name, "tie" and "both bad"."""
    comparison: Comparison
    alpha: float | None
    """Krippendorff's alpha over the four choices (1: all agree, 0: as by chance); None with one rater, or where
    no item was rated twice, or all choices are the same."""
    shared: int
    """Items that more than one rater judged."""


def read_ratings(path: Path, analysis: Analysis) -> RatingsFile:
    """Raises RunError for a file that is none, is broken, or rates other completions."""
    try:
        # As JSON, not as Python's values: strict as it is, pydantic takes a list for a tuple in JSON only.
        ratings = RatingsFile.model_validate_json(dump(parse(path.read_text(encoding="utf-8-sig"))))
    except FileNotFoundError:
        raise RunError(Problem("there is no such file", str(path))) from None
    except OSError as error:
        raise RunError(Problem(f"cannot be read: {str(error.strerror).lower()}", str(path))) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RunError(Problem(f"{key or 'the file'}: {first['msg'].lower()}; {AGAIN}", str(path))) from None
    except StrictJsonError as error:
        raise RunError(Problem(f"{error}; {AGAIN}", str(path))) from None
    except ValueError:
        raise RunError(Problem(f"is not the JSON that the report page exports; {AGAIN}", str(path))) from None
    if ratings.report != analysis.digest:
        about = (
            f"rates the run {ratings.run!r}"
            if ratings.run != analysis.manifest.name
            else "rates other answers of this run"
        )
        raise RunError(
            Problem(f"{about}, not the answers of {analysis.manifest.name!r} as they are now; {AGAIN}", str(path))
        )
    if not ratings.ratings:
        raise RunError(Problem("holds no rating yet", str(path)))
    known = {*ratings.sides, TIE, BOTH_BAD}
    for rating in ratings.ratings:
        if rating.choice not in known:
            raise RunError(
                Problem(f"has the choice {rating.choice!r}; known are {', '.join(sorted(known))}", str(path))
            )
    _check_items(ratings, analysis, path)
    return ratings


def _check_items(ratings: RatingsFile, analysis: Analysis, path: Path) -> None:
    """Raises RunError for an item that the report has not, or that stands there twice: it would count, or hide the other."""
    rows = {f"{example.task}/{example.row}" for example in analysis.examples}
    known = rows | {f"prompt {number}" for number in range(len(analysis.probes))}
    for item, count in Counter(rating.item for rating in ratings.ratings).items():
        if item not in known:
            raise RunError(Problem(f"rates {item}, which this run has not; {AGAIN}", str(path)))
        if count > 1:
            raise RunError(Problem(f"rates {item} {count} times; keep one of them, or {AGAIN}", str(path)))


def merge(files: Sequence[RatingsFile]) -> Preference:
    """One preference of all raters. An item that several judged counts once, with the mean of their choices. Raises
    RunError where two files are of the same rater, who would count twice."""
    names = [file.rater.strip() or f"rater {number}" for number, file in enumerate(files, 1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise RunError(f"two ratings files are of the rater {twice[0]!r}; give one of each rater, or another name")
    base, tuned = files[0].sides
    worth = {base: -100.0, tuned: 100.0, TIE: 0.0, BOTH_BAD: 0.0}
    choices = {
        name: {rating.item: rating.choice for rating in file.ratings} for name, file in zip(names, files, strict=True)
    }
    by_item: dict[str, list[float]] = defaultdict(list)
    for one in choices.values():
        for item, choice in one.items():
            by_item[item].append(worth[choice])
    means = [sum(values) / len(values) for values in by_item.values()]
    counted = Counter(choice for one in choices.values() for choice in one.values())
    return Preference(
        raters=names,
        counts={choice: counted[choice] for choice in worth},
        comparison=compare([0.0] * len(means), means, binary=False),
        alpha=_alpha(list(choices.values()), list(worth)),
        shared=sum(len(values) > 1 for values in by_item.values()),
    )


def _alpha(choices: Sequence[dict[str, str]], kinds: list[str]) -> float | None:
    """Nominal alpha. (Krippendorff, Content Analysis, 4th ed. 2018, ch. 12; by the package krippendorff.)"""
    import krippendorff
    import numpy as np

    items = sorted({item for one in choices for item in one if sum(item in other for other in choices) > 1})
    values = np.array([[kinds.index(one[item]) if item in one else np.nan for item in items] for one in choices])
    if not items or len(set(values[~np.isnan(values)])) < 2:
        return None
    return float(krippendorff.alpha(values, level_of_measurement="nominal", value_domain=list(range(len(kinds)))))
