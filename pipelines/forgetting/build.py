"""From the words of the YAML to the strategies of one training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipelines.config.job import Job
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import open_table
from pipelines.errors import ConfigError
from pipelines.evaluation.completions import LoadedModel, quantization_of
from pipelines.evaluation.general_text import answer_rows, answered, passages, users_rows
from pipelines.evaluation.retention import PreparedGuard, prepare_guards
from pipelines.evaluation.retention_files import bundled
from pipelines.forgetting.continual import earlier_runs, earlier_tasks
from pipelines.forgetting.distill import Distill
from pipelines.forgetting.ewc import Ewc
from pipelines.forgetting.l2sp import l2sp
from pipelines.forgetting.replay import Replay
from pipelines.forgetting.si import Si
from pipelines.forgetting.strategy import Strategy
from pipelines.forgetting.teacher import check_teacher, teach
from pipelines.modeling.base_models import at_key
from pipelines.modeling.content_hash import fingerprint
from pipelines.modeling.packing import Rows
from pipelines.modeling.token_dataset import TokenRows
from pipelines.storage.cache import cached
from pipelines.storage.run_folder import Run, digest, read_jsonl, versions

SI_FILE = "si.safetensors"


@dataclass
class Start:
    """Where a job starts: a model on disk, and what is known of it."""

    job: Job
    run: Run
    folder: Path
    """The base, or the model that an earlier run left."""

    @cached_property
    def model_id(self) -> str:
        """The content of the model as it is loaded: quantized weights answer differently."""
        quantization = self.job.ludwig.get("quantization")
        own = fingerprint(self.folder)
        return digest(own, quantization)[:16] if quantization else own

    @cached_property
    def prompts(self) -> PromptFormat:
        return PromptFormat.of_folder(self.folder, self.job.pipeline.chat_template)

    def load(self) -> LoadedModel:
        return LoadedModel.base(self.folder, self.job.pipeline.chat_template, quantization_of(self.job))

    @cached_property
    def answers(self) -> Rows:
        """The bundled general instructions with the start's own answers."""
        system = self.job.pipeline.system
        found = answered(self.load, self.prompts, self.model_id, bundled("general/instructions.jsonl"), system)
        return answer_rows(self.prompts, found, system)

    @cached_property
    def guards(self) -> list[PreparedGuard]:
        """The config's guards, and the tasks of the runs that led here."""
        pipeline = self.job.pipeline
        prepared = prepare_guards(pipeline.forgetting, self.load, self.prompts, self.model_id, pipeline.system)
        return [*prepared, *earlier_tasks(self.run)]

    @cached_property
    def guard_means(self) -> dict[str, float]:
        """Each guard's mean before training, as the run's first pass has measured it."""
        sums: dict[str, list[float]] = {}
        for line in read_jsonl(self.run.path("guards", "base.jsonl")):
            if line["score"] is not None:
                sums.setdefault(line["guard"], []).append(float(line["score"]))
        return {name: sum(scores) / len(scores) for name, scores in sums.items()}

    @cached_property
    def passages(self) -> Rows:
        return passages(self.prompts, bundled("general/passages.jsonl"))

    def general(self, sequences: int) -> Rows:
        """About as many passages as answers, `sequences` in all or as many as there are."""
        order = np.random.default_rng(self.job.pipeline.seed).permutation(len(self.passages) + len(self.answers))
        both = Rows(
            [*self.passages.input_ids, *self.answers.input_ids],
            [*self.passages.supervised_from, *self.answers.supervised_from],
        )
        return both.take([int(number) for number in order[:sequences]])


def rows_of(run: Run, split: str) -> Rows:
    """A split of a run's prepared rows."""
    return TokenRows.of(open_table(run.path("data"), split)).rows


def build(start: Start, task_rows: Rows) -> list[Strategy]:
    """The strategies of the job, in the order in which they act."""
    forgetting, adapter = start.job.pipeline.forgetting, bool(start.job.ludwig.get("adapter"))
    used = forgetting.strategies
    found: list[Strategy] = []
    distill = None
    if "distill" in used:
        distill = _distill(start, task_rows)
        found.append(distill)
    if "replay" in used or (distill is not None and distill.settings.rows != "tasks"):
        found.append(_replay(start, distill if distill is not None and distill.settings.rows != "tasks" else None))
    if "ewc" in used:
        found.append(_ewc(start))
    if "si" in used:
        found.append(_si(start))
    if "l2sp" in used:
        found.append(l2sp(forgetting.settings("l2sp"), adapter))
    return found


def _distill(start: Start, task_rows: Rows) -> Distill:
    settings = start.job.pipeline.forgetting.settings("distill")
    if settings.teacher is None:
        return Distill(settings)
    if settings.rows != "tasks":
        message = "pipeline.forgetting.distill.teacher knows the tasks' rows alone; write rows: tasks"
        raise ConfigError(start.job.problem(message, "pipeline", "forgetting", "distill"))
    with at_key(start.job, "pipeline", "forgetting", "distill", "teacher"):
        teacher = check_teacher(settings, start.folder)
    return Distill(settings, teach(settings, teacher, task_rows, start.run.path("training", "teacher.safetensors")))


def _replay(start: Start, distill: Distill | None) -> Replay:
    forgetting, seed = start.job.pipeline.forgetting, start.job.pipeline.seed
    learn = "replay" in forgetting.strategies
    settings = forgetting.settings("replay")
    rows = (
        users_rows(start.prompts, Path(settings.data), start.job.pipeline.system)
        if learn and settings.data
        else start.answers
    )
    for earlier in earlier_runs(start.run) if learn else ():
        past = rows_of(earlier, "train")
        rows = Rows([*rows.input_ids, *past.input_ids], [*rows.supervised_from, *past.supervised_from])
    share = settings.share if learn else forgetting.settings("distill").share
    return Replay(rows, share, seed, learn=learn, distill=distill)


def _ewc(start: Start) -> Ewc:
    settings, seed = start.job.pipeline.forgetting.settings("ewc"), start.job.pipeline.seed
    general = start.general(settings.sequences)
    texts = [(general, _importance_file(start, "ewc", general, settings.fisher), 1.0)]
    for steps_back, earlier in enumerate(earlier_runs(start.run)):
        past = rows_of(earlier, "train")[: settings.sequences]
        texts.append((past, _importance_file(start, "ewc", past, settings.fisher), settings.decay**steps_back))
    return Ewc(settings, texts, start.model_id, seed)


def _si(start: Start) -> Si:
    settings = start.job.pipeline.forgetting.settings("si")
    general = start.general(settings.warm_steps * 8)
    warm = _importance_file(start, "si", general, [settings.warm_steps, settings.damping])
    last = next(earlier_runs(start.run), None)
    carried = None
    if last is not None and last.path("forgetting", SI_FILE).exists():
        carried = (last.path("forgetting", SI_FILE), fingerprint(last.path("model")))
    return Si(
        settings, general, warm, start.model_id, start.job.pipeline.seed, carried, start.run.path("forgetting", SI_FILE)
    )


def _importance_file(start: Start, name: str, rows: Rows, how: object) -> Path:
    """In the user's cache: measured once for a model, a text and a kind of job."""
    adapter = start.job.ludwig.get("adapter")
    text = digest([ids.tolist() for ids in rows.input_ids], list(rows.supervised_from))
    frozen = start.job.ludwig["trainer"].get("layers_to_freeze_regex")
    targets = [adapter.get("type"), adapter.get("target_modules")] if adapter else None
    key = digest(start.model_id, text, how, start.job.pipeline.seed, targets, frozen, versions())
    return cached("importance", f"{name}-{key[:32]}.safetensors")
