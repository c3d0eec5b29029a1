"""The `forgetting:` section: what a run must not forget (retention evals), and what keeps it from forgetting (strategies)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, ValidationInfo, field_validator, model_validator

from pipelines.config.base import Count, Fraction, NotNegative, Positive, Section, Text
from pipelines.config.messages import did_you_mean


class Ewc(Section):
    """Elastic weight consolidation: weights that general text depends on are held by a spring.

    Kirkpatrick et al. 2017, arXiv:1612.00796; the Fisher information is taken at the base, on general text.
    """

    weight: NotNegative = 1.0
    """λ. At 1 a nat of divergence from the base, as the Fisher information foresees it, weighs as much as a nat of
    the tasks' loss."""
    fisher_samples: Count = 256
    """Sequences of general text that the Fisher information is averaged over."""
    fisher: Literal["factored", "kronecker"] = "factored"
    """Under an adapter: rows × columns, or Kronecker factors. Without one it is the diagonal."""
    gamma: Annotated[float, Field(ge=0, le=1)] = 1.0
    """γ of online EWC: what the earlier jobs' importance keeps (`continue_from`)."""


class Si(Section):
    """Synaptic intelligence: weights that a short pass over general text moved to good effect are held.

    Zenke et al. 2017, arXiv:1703.04200.
    """

    weight: NotNegative = 1.0
    """c."""
    damping: Positive = 0.1
    """ξ, in units of the mean squared move: how little a weight may move and still count as important."""
    importance_steps: Count = 24
    """Steps of the pass over general text, each of 8 sequences."""


class Replay(Section):
    """General instructions with the base's own answers, trained among the tasks."""

    fraction: Fraction = 0.05
    """Of all supervised tokens."""
    data: Text | None = None
    """A file of rows with `prompt` and `completion`. None: the bundled instructions, answered by the base."""


class Distill(Section):
    """The tuned model is pulled towards the answers that the base would give: KL(base ‖ tuned) per token.

    Hinton et al. 2015, arXiv:1503.02531.
    """

    weight: NotNegative = 1.0
    """α. At 1 a nat of divergence weighs as much as a nat of the tasks' loss."""
    temperature: Positive = 1.0
    apply_to: Literal["general", "task", "both"] = "general"
    """general: on general rows (those of replay, or the same kind of rows); task: on the tasks' own rows, which it
    works against."""
    fraction: Fraction = 0.05
    """Of general rows in the supervised tokens where there is no replay."""
    teacher: Text | None = None
    """Another model with the same tokenizer, taught on the tasks' rows. None: the base."""
    top_k: Count = 64
    """Tokens of a teacher's distribution that are kept; the rest is one bucket."""

    @model_validator(mode="after")
    def _every_setting_has_its_use(self) -> Self:
        usual = type(self).model_fields
        if self.teacher is not None and self.apply_to != "task":
            raise ValueError("a teacher knows the tasks' rows only; write apply_to: task")
        if self.teacher is None and self.top_k != usual["top_k"].default:
            raise ValueError("top_k has no effect without a teacher; take it out")
        if self.apply_to == "task" and self.fraction != usual["fraction"].default:
            raise ValueError("fraction has no effect with apply_to: task, which draws no general rows; take it out")
        return self


class L2sp(Section):
    """Distance from the base's weights costs, alike for all. Li et al. 2018, arXiv:1802.01483."""

    weight: NotNegative = 0.01
    """Per unit of squared distance, halved."""


class Interpolate(Section):
    """Weights between base and tuned, chosen after training. Wortsman et al. 2022, arXiv:2109.01903."""

    max_loss_increase: NotNegative = 0.02
    """Nats per token of loss on general text that may be lost; the largest scale within it is taken."""
    scale: Annotated[float, Field(ge=0, le=1)] | None = None
    """This scale instead, whatever it loses."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.scale is not None and self.max_loss_increase != type(self)().max_loss_increase:
            raise ValueError("max_loss_increase has no effect beside scale; take one of them out")
        return self


HUB = "hub:"
"""What the data of a retention eval begin with that are a file of a data set on the hub: hub:OWNER/NAME/FILE."""


RetentionEvalKind = Literal["multiple_choice", "text_nll", "kl", "task"]


class RetentionEvalSettings(Section):
    """Rows that tell whether something the base could do is still there."""

    kind: RetentionEvalKind
    """multiple_choice: accuracy. text_nll: loss in nats per token. kl: KL(base ‖ tuned) per token on the
    base's own answers. task: completions, scored by `metric`."""
    data: Text
    limit: Count | None = None
    """The number of rows that are read, from the first on; None reads all."""
    prompt: Text | None = None
    completion: Text | None = None
    metric: Text = "rouge"
    system: str | None = None
    max_new_tokens: Count = 64

    @model_validator(mode="after")
    def _a_task_has_templates(self) -> Self:
        templates = {"prompt": self.prompt, "completion": self.completion}
        missing = [name for name, template in templates.items() if template is None]
        if self.kind == "task" and missing:
            raise ValueError(f"kind: task needs {' and '.join(missing)} as well, as a task does")
        if self.kind != "task" and len(missing) < 2:
            raise ValueError(
                f"{next(name for name in templates if name not in missing)} goes with kind: task only; take it out"
            )
        usual = type(self).model_fields
        for name in ("metric", "system", "max_new_tokens"):
            if self.kind != "task" and getattr(self, name) != usual[name].default:
                raise ValueError(f"{name} goes with kind: task only; take it out")
        return self


BUNDLED: dict[str, tuple[RetentionEvalKind, str]] = {
    "knowledge": ("multiple_choice", "retention/choices.jsonl"),
    "text": ("text_nll", "retention/passages.jsonl"),
    "answers": ("kl", "retention/instructions.jsonl"),
}
"""The retention evals of `evals: bundled`: kind, and file in data/."""

SETTINGS: dict[str, type[Section]] = {
    "ewc": Ewc,
    "si": Si,
    "replay": Replay,
    "distill": Distill,
    "l2sp": L2sp,
    "interpolate": Interpolate,
}
BASELINE_LABELS = ("multitask", "full", "peft")
"""What a job's tasks and adapter already are, named so that they can be compared."""
AUTO: dict[str, Section] = {"replay": Replay(fraction=0.1), "distill": Distill(weight=3.0)}
"""What `auto` stands for, but where `resolve_auto` says otherwise; docs/forgetting.md has the measurements."""
STRATEGIES = ("auto", "none", *SETTINGS, *BASELINE_LABELS)


def parse_strategies(strategy: str) -> list[str]:
    """The strategies that a word of the YAML names, `auto` and `none` resolved: `ewc+replay` are two."""
    words = [word for part in strategy.split("+") for word in (AUTO if part.strip() == "auto" else [part.strip()])]
    return [word for word in dict.fromkeys(words) if word != "none"]


def resolve_auto(adapter: bool, continued: bool) -> str:
    """How a job's `auto` is written out. Where every weight of a base is trained, going back afterwards keeps more for less."""
    return "auto" if adapter or continued else "interpolate"


class Forgetting(Section):
    """`forgetting: ewc` is short for `forgetting: {strategy: ewc}`."""

    strategy: str = "auto"
    """auto, none, one of SETTINGS or BASELINE_LABELS, or several joined by +."""
    ewc: Ewc | None = None
    si: Si | None = None
    replay: Replay | None = None
    distill: Distill | None = None
    l2sp: L2sp | None = None
    interpolate: Interpolate | None = None
    evals: Annotated[
        Annotated[Literal["bundled", "none"], Tag("<word>")]
        | Annotated[dict[Annotated[str, Field(pattern=r"\A[A-Za-z0-9_-]+\z")], RetentionEvalSettings], Tag("<evals>")],
        Discriminator(lambda value: "<evals>" if isinstance(value, dict) else "<word>"),
    ] = "bundled"
    eval_steps: Count | None = None
    """Steps between measurements of the retention evals while training; None measures only before and after."""
    max_regression: dict[str, Positive] = {}
    """By retention eval: the regression that is allowed, in its own unit; training stops at a measurement (`eval_steps`)
    that exceeds it."""

    @model_validator(mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        if not isinstance(value, str | dict | Forgetting):
            raise ValueError(
                "expected a strategy, as in forgetting: ewc, or a section, as in {strategy: ewc, eval_steps: 20}"
            )
        return {"strategy": value} if isinstance(value, str) else value

    @field_validator("strategy")
    @classmethod
    def _known(cls, strategy: str, info: ValidationInfo) -> str:
        """The context's `refused` are the strategies that the rest of the job contradicts: none of them is suggested."""
        possible = [word for word in STRATEGIES if word not in (info.context or {}).get("refused", ())]
        for word in re.split(r"\s*\+\s*", strategy.strip()):
            if word not in STRATEGIES:
                near = did_you_mean(word, possible)
                named = ", ".join(word for word in possible if word not in ("auto", "none"))
                alone = f"write auto, none, or one or more of {named}, joined by +"
                advice = f"did you mean {near}?" if near else alone
                raise ValueError(f"unknown strategy {word!r}; {advice}")
        return strategy

    @model_validator(mode="after")
    def _every_setting_has_its_use(self) -> Self:
        for name in SETTINGS:
            if getattr(self, name) is not None and name not in self.strategies:
                both = f"write strategy: {self._with(name)} to use it"
                raise ValueError(f"{name} has settings, but strategy is {self.strategy}; take {name} out, or {both}")
        if "replay" in self.strategies and self.distill and self.distill.fraction != Distill().fraction:
            raise ValueError(
                "distill.fraction has no effect beside replay, whose rows it takes; write replay: {fraction: …}"
            )
        if self.evals == {}:
            raise ValueError("evals is empty; write evals: none, or evals: bundled")
        if self.eval_steps is not None and self.evals == "none":
            raise ValueError(
                "eval_steps has no effect with evals: none, since there is nothing to measure; take it out"
            )
        if self.max_regression and self.eval_steps is None:
            raise ValueError(
                "max_regression needs eval_steps, the steps between two measurements, as in eval_steps: 20"
            )
        if strange := set(self.max_regression) - set(self.eval_names):
            name = sorted(strange)[0]
            near = did_you_mean(name, self.eval_names)
            advice = (
                f"did you mean {near}?" if near else f"the retention evals are {', '.join(self.eval_names) or 'none'}"
            )
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
        return list(BUNDLED) if self.evals == "bundled" else []

    def settings(self, name: str) -> Any:
        """The knobs of a strategy, defaults filled in."""
        chosen_by_auto = AUTO.get(name) if "auto" in re.split(r"\s*\+\s*", self.strategy.strip()) else None
        return getattr(self, name) or chosen_by_auto or SETTINGS[name]()
