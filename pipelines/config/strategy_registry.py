"""The registry of the strategies against forgetting, and what a job's config needs to know of each of them.

Every module of `pipelines/forgetting/strategies/` registers one `StrategySpec`. The YAML section of the strategy, its
validation, the hints on misspelt keys, `alfine check`, `alfine sweep`, the report and the JSON schema follow from
that entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipelines.config.base import Section
from pipelines.registry import Registry


@dataclass(frozen=True)
class JobTraits:
    """The properties of a job that a strategy may depend on, read from a config that need not be valid."""

    adapter: Mapping[str, Any] | None = None
    """The section `adapter`; None if every weight is trained."""
    is_quantized: bool = False
    is_base_sharded: bool = False
    """Whether each worker holds only a part of the frozen base weights."""
    continues_run: bool = False
    """Whether the job starts from the model of an earlier run."""
    num_tasks: int | None = None
    """None if the section `tasks` is no mapping."""
    strategies: Sequence[str] = field(default=())
    optimizer: str = "adamw"


class StrategySettings(Section):
    """Base class of the section `pipeline.forgetting.NAME`. Every key has a default."""

    row_files: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """The keys that name a file of rows, each with the columns that the file must have."""
    model_keys: ClassVar[tuple[str, ...]] = ()
    """The keys that name a model."""

    def unused_keys(self, job: JobTraits) -> Iterator[tuple[str, str]]:
        """Yields each key whose value has no effect in `job`, with the reason: `without an adapter; remove it`."""
        return iter(())


@dataclass(frozen=True)
class SearchSpace:
    """The hyperparameter that `alfine sweep` tunes."""

    key: str
    """A key of the strategy's settings."""
    values: tuple[float, ...]
    """The values in the order in which they are tried, the default first."""


def _no_conflict(job: JobTraits) -> str | None:
    return None


@dataclass(frozen=True)
class StrategySpec:
    """One strategy: its settings, its requirements, and the function that builds it for a training."""

    title: str
    """The name in reports, such as `elastic weight consolidation`."""
    settings: type[StrategySettings]
    search_space: SearchSpace
    build: Callable[..., Sequence[Any]]
    """`build(context, settings)` returns the `Strategy` objects of a job, given its `ForgettingContext`."""
    conflict: Callable[[JobTraits], str | None] = _no_conflict
    """Returns why the strategy cannot be used in a job and what to write instead; None if it can."""
    order: int = 100
    """Strategies are built and act within a step in ascending order, strategies of the same order by name.

    `distill` comes before `replay`, which gets the built strategy from `ForgettingContext.strategies_by_name`.
    """
    sweep_variants: tuple[str, ...] | None = None
    """The values of `strategy` that `alfine sweep` compares by default; None is the strategy's name."""


STRATEGIES: Registry[StrategySpec] = Registry("pipelines.forgetting.strategies")


def strategy_title(name: str) -> str:
    """Returns the name of a strategy with its title, such as `ewc (elastic weight consolidation)`.

    A run may name a strategy that is not registered any more. The title is left out then, and if it equals the name.
    """
    title = STRATEGIES[name].title if name in STRATEGIES else name
    return name if title == name else f"{name} ({title})"


def default_sweep_variants() -> list[str]:
    """Returns the variants that `alfine sweep` compares by default: `none`, and those of every strategy."""
    variants = (
        spec.sweep_variants if spec.sweep_variants is not None else (name,) for name, spec in STRATEGIES.items()
    )
    return ["none", *(variant for names in variants for variant in names)]
