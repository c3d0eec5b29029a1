"""The section `pipeline.forgetting`: the retention evals that measure forgetting, and the strategies against it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationInfo, create_model, field_validator, model_validator

from pipelines.config.base import Count, Name, Positive, Section
from pipelines.config.messages import did_you_mean
from pipelines.config.optimizer_checks import optimizer_type
from pipelines.config.retention_registry import RetentionEvalByKind, bundled_evals
from pipelines.config.strategy_registry import STRATEGIES, JobTraits, StrategySettings

BASELINE_LABELS = ("none", "multitask", "full", "peft")
"""Values of `strategy` that name the baseline, or what the job's tasks and adapter already are."""
AUTO_SETTINGS: dict[str, dict[str, Any]] = {"replay": {"fraction": 0.1}, "distill": {"weight": 3.0}}
"""The strategies that `auto` stands for, with their settings, unless `resolve_auto` replaces `auto`.

See docs/forgetting.md.
"""


def strategy_words() -> list[str]:
    """Returns every word that `strategy` may contain."""
    return ["auto", "none", *STRATEGIES, *(label for label in BASELINE_LABELS if label != "none")]


def parse_strategies(strategy: str) -> list[str]:
    """Returns the strategies and labels in a value such as `ewc+replay`.

    `auto` is replaced by its strategy, `none` is left out.
    """
    words = [
        word for part in strategy.split("+") for word in (AUTO_SETTINGS if part.strip() == "auto" else [part.strip()])
    ]
    return [word for word in dict.fromkeys(words) if word != "none"]


def resolve_auto(adapter: bool, continued: bool) -> str:
    """Returns the word that replaces `auto` in the value of `strategy`: `interpolate`, or `auto` itself.

    If every weight of a base is trained, interpolation after training preserves more at a lower cost. Otherwise the
    word stays: `auto` stands for the strategies in AUTO_SETTINGS with settings other than their defaults.
    """
    return "auto" if adapter or continued else "interpolate"


def job_traits(section: Any, ludwig: Mapping[str, Any]) -> JobTraits:
    """Returns the traits of a job from its section `pipeline:` and the rest of its config, both possibly invalid."""
    section = section if isinstance(section, dict) else {}
    tasks, adapter, backend = section.get("tasks"), ludwig.get("adapter"), ludwig.get("backend")
    workers = backend.get("trainer") if isinstance(backend, dict) else None
    forgetting = section.get("forgetting", {})
    strategy = forgetting.get("strategy", "auto") if isinstance(forgetting, dict) else forgetting
    return JobTraits(
        adapter=adapter if isinstance(adapter, dict) or adapter is None else {},
        is_quantized=bool(ludwig.get("quantization")),
        is_base_sharded=isinstance(workers, dict) and bool(workers.get("fsdp")),
        continues_run=section.get("continue_from") is not None,
        num_tasks=len(tasks) if isinstance(tasks, dict) else None,
        strategies=parse_strategies(strategy) if isinstance(strategy, str) else (),
        optimizer=optimizer_type(ludwig.get("trainer")),
    )


def strategy_conflicts(job: JobTraits) -> dict[str, str]:
    """Returns the strategies and labels that cannot be used in a job, and why."""
    conflicts = {name: spec.conflict(job) for name, spec in STRATEGIES.items()}
    if job.num_tasks is not None and job.num_tasks < 2:
        conflicts["multitask"] = "multitask requires at least two tasks"
    if job.adapter is not None:
        conflicts["full"] = "full trains every weight; remove the section adapter"
    else:
        conflicts["peft"] = "peft requires the section adapter, as in adapter: {type: lora, r: 16}"
    return {name: reason for name, reason in conflicts.items() if reason is not None}


if TYPE_CHECKING:

    class _StrategySections(Section):
        strategy: str = "auto"
else:
    # One optional section per registered strategy.
    _StrategySections = create_model(
        "_StrategySections",
        __base__=Section,
        strategy=(str, "auto"),
        **{
            name: (spec.settings | None, Field(None, description=f"Settings of the strategy {name} ({spec.title})."))
            for name, spec in STRATEGIES.items()
        },
    )


class Forgetting(_StrategySections):
    """`forgetting: ewc` is short for `forgetting: {strategy: ewc}`."""

    strategy: str = Field(
        default="auto",
        description="auto, none, a strategy, or several joined by +. peft, full and multitask are labels for reports.",
    )
    evals: Annotated[
        Annotated[Literal["bundled", "none"], Tag("<word>")]
        | Annotated[dict[Name, RetentionEvalByKind], Tag("<evals>")],
        Discriminator(lambda value: "<evals>" if isinstance(value, dict) else "<word>"),
    ] = Field(default="bundled", description="Retention evals by name, or bundled, or none.")
    eval_steps: Count | None = Field(
        default=None,
        description="Number of steps between retention evals during training; None runs them only before and after.",
    )
    max_regression: dict[str, Positive] = Field(
        default={},
        description="Maximum regression by retention eval, in its unit; training stops when an eval exceeds it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _expand_word(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | Forgetting):
            raise ValueError(
                "expected a strategy, as in forgetting: ewc, or a section, as in {strategy: ewc, eval_steps: 20}"
            )
        return {"strategy": value} if isinstance(value, str) else value

    @field_validator("strategy")
    @classmethod
    def _check_strategy(cls, strategy: str, info: ValidationInfo) -> str:
        """The context's `refused` are the strategies that conflict with the rest of the job; they are not suggested."""
        possible = [word for word in strategy_words() if word not in (info.context or {}).get("refused", ())]
        for word in re.split(r"\s*\+\s*", strategy.strip()):
            if word not in strategy_words():
                similar = did_you_mean(word, possible)
                combinable = ", ".join(word for word in possible if word not in ("auto", "none"))
                choices = f"write auto, none, or one or more of {combinable}, joined by +"
                raise ValueError(f"unknown strategy {word!r}; {f'did you mean {similar}?' if similar else choices}")
        return strategy

    @model_validator(mode="after")
    def _check_keys_have_effect(self) -> Self:
        for name in STRATEGIES:
            if getattr(self, name) is not None and name not in self.strategies:
                alternative = f"write strategy: {self._with(name)}"
                raise ValueError(
                    f"{name} has settings, but strategy is {self.strategy}; remove {name}, or {alternative}"
                )
        if self.evals == {}:
            raise ValueError("evals is empty; write evals: none, or evals: bundled")
        if self.eval_steps is not None and self.evals == "none":
            raise ValueError("eval_steps has no effect with evals: none; remove it")
        if self.max_regression and self.eval_steps is None:
            raise ValueError(
                "max_regression requires eval_steps, the number of steps between evals, as in eval_steps: 20"
            )
        # Only if needed: the names of the bundled evals import their kinds, which import the config.
        if self.max_regression and (unknown := sorted(set(self.max_regression) - set(self.eval_names))):
            name = unknown[0]
            similar = did_you_mean(name, self.eval_names)
            known = ", ".join(self.eval_names) or "none"
            advice = f"did you mean {similar}?" if similar else f"the retention evals are {known}"
            raise ValueError(f"max_regression.{name}: there is no such retention eval; {advice}")
        return self

    def _with(self, name: str) -> str:
        return "+".join([*([] if self.strategy in ("none", "auto") else self.strategies), name])

    @property
    def strategies(self) -> list[str]:
        return parse_strategies(self.strategy)

    @property
    def eval_names(self) -> list[str]:
        if isinstance(self.evals, dict):
            return list(self.evals)
        return list(bundled_evals()) if self.evals == "bundled" else []

    def settings(self, name: str) -> Any:
        """Returns the settings of a strategy: those of the YAML, else those of `auto`, else the defaults."""
        if (settings := getattr(self, name)) is not None:
            return settings
        is_auto = "auto" in re.split(r"\s*\+\s*", self.strategy.strip())
        return STRATEGIES[name].settings(**AUTO_SETTINGS.get(name, {}) if is_auto else {})

    def unused_settings(self, job: JobTraits) -> Iterator[tuple[str, str, str]]:
        """Yields each setting in the YAML that has no effect in `job`: strategy, key, and the rest of the sentence."""
        for name, settings in self._sections():
            yield from ((name, key, reason) for key, reason in settings.unused_keys(job))

    def row_files(self) -> Iterator[tuple[str, str, str]]:
        """Yields the files of rows that the strategies' settings name: strategy, key, file."""
        for name, settings in self._sections():
            yield from ((name, key, file) for key in settings.row_files if (file := getattr(settings, key)) is not None)

    def model_names(self) -> Iterator[tuple[str, str, str]]:
        """Yields the models that the strategies' settings name: strategy, key, name."""
        for name, settings in self._sections():
            yield from (
                (name, key, model) for key in settings.model_keys if (model := getattr(settings, key)) is not None
            )

    def _sections(self) -> Iterator[tuple[str, StrategySettings]]:
        return ((name, settings) for name in STRATEGIES if (settings := getattr(self, name)) is not None)
