"""From the words of the YAML to the strategies of one training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipelines.config.job import Job
from pipelines.data.prompt_format import PromptFormat
from pipelines.data.tokenize_rows import open_split
from pipelines.errors import ConfigError
from pipelines.evaluation.completions import LoadedModel
from pipelines.evaluation.general_text import (
    encode_answers,
    encode_passages,
    generate_general_answers,
    load_replay_rows,
)
from pipelines.evaluation.retention import PreparedRetentionEval, prepare_retention_evals
from pipelines.evaluation.retention_files import bundled_file
from pipelines.forgetting.continual import ancestor_runs, earlier_tasks
from pipelines.forgetting.distill import Distill
from pipelines.forgetting.ewc import Ewc
from pipelines.forgetting.l2sp import l2sp
from pipelines.forgetting.replay import Replay
from pipelines.forgetting.si import Si
from pipelines.forgetting.strategy import Strategy
from pipelines.forgetting.teacher import cache_teacher_topk, check_teacher
from pipelines.modeling.base_models import locate_model_errors
from pipelines.modeling.content_hash import fingerprint
from pipelines.modeling.token_dataset import TokenDataset
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.storage.cache import cache_entry
from pipelines.storage.environment import versions
from pipelines.storage.files import digest
from pipelines.storage.records import RetentionRecord, read_records
from pipelines.storage.run_folder import Run

SI_FILE = "si.safetensors"


@dataclass
class JobContext:
    """Where a job starts: a model on disk, and what is known of it."""

    job: Job
    run: Run
    model_folder: Path
    """The base, or the model that an earlier run left."""

    @cached_property
    def model_id(self) -> str:
        """The content of the model as it is loaded: quantized weights answer differently."""
        quantization = self.job.quantization
        own = fingerprint(self.model_folder)
        return digest(own, quantization)[:16] if quantization else own

    @cached_property
    def prompts(self) -> PromptFormat:
        return PromptFormat.from_folder(self.model_folder, self.job.pipeline.chat_template)

    def load_model(self) -> LoadedModel:
        return LoadedModel.from_folder(self.model_folder, self.job.pipeline.chat_template, self.job.quantization)

    @cached_property
    def general_answers(self) -> TokenSequences:
        """The bundled general instructions with the starting model's own answers."""
        system = self.job.system_prompt()
        found = generate_general_answers(
            self.load_model, self.prompts, self.model_id, bundled_file("general/instructions.jsonl"), system
        )
        return encode_answers(self.prompts, found, system)

    @cached_property
    def retention_evals(self) -> list[PreparedRetentionEval]:
        """The config's guards, and the tasks of the runs that led here."""
        pipeline = self.job.pipeline
        prepared = prepare_retention_evals(
            pipeline.forgetting, self.load_model, self.prompts, self.model_id, pipeline.system
        )
        return [*prepared, *earlier_tasks(self.run)]

    @cached_property
    def base_retention_means(self) -> dict[str, float]:
        """Each guard's mean before training, as the run's first pass has measured it."""
        sums: dict[str, list[float]] = {}
        for record in read_records(self.run.path("retention", "base.jsonl"), RetentionRecord):
            if record.score is not None:
                sums.setdefault(record.eval, []).append(record.score)
        return {name: sum(scores) / len(scores) for name, scores in sums.items()}

    @cached_property
    def general_passages(self) -> TokenSequences:
        return encode_passages(self.prompts, bundled_file("general/passages.jsonl"))

    def sample_general(self, sequences: int) -> TokenSequences:
        """About as many passages as answers, `sequences` in all or as many as there are."""
        order = np.random.default_rng(self.job.pipeline.seed).permutation(
            len(self.general_passages) + len(self.general_answers)
        )
        both = TokenSequences.concatenate(self.general_passages, self.general_answers)
        return both.select([int(number) for number in order[:sequences]])


def load_split(run: Run, split: str) -> TokenSequences:
    """A split of a run's prepared rows."""
    return TokenDataset.from_table(open_split(run.path("data"), split)).sequences


def build_strategies(context: JobContext, task_rows: TokenSequences) -> list[Strategy]:
    """The strategies of the job, in the order in which they act."""
    forgetting, adapter = context.job.pipeline.forgetting, context.job.adapter is not None
    used = forgetting.strategies
    found: list[Strategy] = []
    distill = None
    if "distill" in used:
        distill = _distill(context, task_rows)
        found.append(distill)
    if "replay" in used or (distill is not None and distill.settings.apply_to != "task"):
        found.append(_replay(context, distill if distill is not None and distill.settings.apply_to != "task" else None))
    if "ewc" in used:
        found.append(_ewc(context))
    if "si" in used:
        found.append(_si(context))
    if "l2sp" in used:
        found.append(l2sp(forgetting.settings("l2sp"), adapter))
    return found


def _distill(context: JobContext, task_rows: TokenSequences) -> Distill:
    settings = context.job.pipeline.forgetting.settings("distill")
    if settings.teacher is None:
        return Distill(settings)
    if settings.apply_to != "task":
        message = "pipeline.forgetting.distill.teacher knows the tasks' rows alone; write apply_to: task"
        raise ConfigError(context.job.problem(message, "pipeline", "forgetting", "distill"))
    with locate_model_errors(context.job, "pipeline", "forgetting", "distill", "teacher"):
        teacher = check_teacher(settings, context.model_folder)
    return Distill(
        settings, cache_teacher_topk(settings, teacher, task_rows, context.run.path("training", "teacher.safetensors"))
    )


def _replay(context: JobContext, distill: Distill | None) -> Replay:
    forgetting, seed = context.job.pipeline.forgetting, context.job.pipeline.seed
    learn = "replay" in forgetting.strategies
    settings = forgetting.settings("replay")
    rows = (
        load_replay_rows(context.prompts, Path(settings.data), context.job.pipeline.system)
        if learn and settings.data
        else context.general_answers
    )
    for earlier in ancestor_runs(context.run) if learn else ():
        past = load_split(earlier, "train")
        rows = TokenSequences.concatenate(rows, past)
    share = settings.fraction if learn else forgetting.settings("distill").fraction
    return Replay(rows, share, seed, train_on_rows=learn, distill=distill)


def _ewc(context: JobContext) -> Ewc:
    settings, seed = context.job.pipeline.forgetting.settings("ewc"), context.job.pipeline.seed
    general = context.sample_general(settings.fisher_samples)
    texts = [(general, _importance_file(context, "ewc", general, settings.fisher), 1.0)]
    for steps_back, earlier in enumerate(ancestor_runs(context.run)):
        past = load_split(earlier, "train")[: settings.fisher_samples]
        texts.append((past, _importance_file(context, "ewc", past, settings.fisher), settings.gamma**steps_back))
    return Ewc(settings, texts, context.model_id, seed)


def _si(context: JobContext) -> Si:
    settings = context.job.pipeline.forgetting.settings("si")
    general = context.sample_general(settings.importance_steps * 8)
    warm = _importance_file(context, "si", general, [settings.importance_steps, settings.damping])
    last = next(ancestor_runs(context.run), None)
    carried = None
    if last is not None and last.path("forgetting", SI_FILE).exists():
        carried = (last.path("forgetting", SI_FILE), fingerprint(last.path("model")))
    return Si(
        settings,
        general,
        warm,
        context.model_id,
        context.job.pipeline.seed,
        carried,
        context.run.path("forgetting", SI_FILE),
    )


def _importance_file(context: JobContext, name: str, rows: TokenSequences, how: object) -> Path:
    """In the user's cache: measured once for a model, a text and a kind of job."""
    adapter = context.job.adapter
    text = digest([ids.tolist() for ids in rows.input_ids], list(rows.supervised_spans))
    frozen = context.job.trainer.get("layers_to_freeze_regex")
    targets = [adapter.get("type"), adapter.get("target_modules")] if adapter else None
    key = digest(context.model_id, text, how, context.job.pipeline.seed, targets, frozen, versions())
    return cache_entry("importance", f"{name}-{key[:32]}.safetensors")
