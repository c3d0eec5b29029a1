"""The stages in their order: prepare → base completions → base guards → train → tuned completions → tuned guards → report."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import __version__
from pipelines.config.job import Job
from pipelines.config.optional_packages import check_extras
from pipelines.console.activity import doing
from pipelines.console.reporter import ConsoleReporter, quiet_libraries
from pipelines.stages.digests import stage_inputs
from pipelines.storage.cache import cache_entry, cache_folder, cache_write_error, check_cache
from pipelines.storage.environment import hardware, versions
from pipelines.storage.files import digest, file_digest, os_errors_as_machine_error, write_json, write_jsonl, write_text
from pipelines.storage.run_folder import Run, check_same_config, config_entries

if TYPE_CHECKING:
    from pipelines.evaluation.evaluator import Evaluator


def run_job(job: Job, run: Run, command: str, reporter: ConsoleReporter) -> None:
    """Does what is not done yet. Killed anywhere, the same call goes on from there."""
    check_extras(job)
    with os_errors_as_machine_error(run.folder), run.locked():
        check_same_config(job.path, run)
        check_cache()
        Stages(job, run, command, reporter).all()


class Stages:
    """The work of each stage and what it depends on."""

    def __init__(self, job: Job, run: Run, command: str, reporter: ConsoleReporter) -> None:
        self.job, self.run, self.command, self.reporter = job, run, command, reporter
        with reporter.working(f"Base model {job.ludwig['base_model']}"):
            quiet_libraries()
            # torch is imported here, which takes half a minute on a busy machine.
            from pipelines.forgetting.continual import starting_model
            from pipelines.modeling.content_hash import fingerprint
            from pipelines.modeling.module_names import check_names

            self.base_folder = starting_model(job, run)
            self.model_id = fingerprint(self.base_folder)
        check_names(job, self.base_folder)
        self.generation = dict(job.ludwig["generation"])

    def all(self) -> None:
        from pipelines.modeling.content_hash import fingerprint

        pipeline, ludwig = self.job.pipeline, self.job.ludwig
        with doing("reading the data files"):
            inputs = stage_inputs(self.job, self.model_id)
        self.run.update(
            name=self.run.name,
            **config_entries(self.job.path, self.run.folder),
            command=self.command,
            seed=pipeline.seed,
            base_model=ludwig["base_model"],
            base_revision=self._revision(),
            continue_from=pipeline.continue_from,
            generation=self._decoding(),
            versions=versions(),
            hardware=hardware(),
        )
        self._write_config()
        self._say_changed_data()
        self._prepare_sandbox()
        self._stage("prepare", inputs["prepare"], self.prepare)
        with self._asking():
            self._stage("eval_base", inputs["eval_base"], lambda: self.complete("base"))
            self._stage("eval_base_retention", inputs["eval_base_retention"], lambda: self.guard("base"))
        self._stage("train", inputs["train"], lambda: self.train(inputs["train"]))
        tuned_id = fingerprint(self.run.path("model"))
        with self._asking():
            self._stage("eval_tuned", digest(inputs["eval_tuned"], tuned_id), lambda: self.complete("tuned"))
            self._stage(
                "eval_tuned_retention", digest(inputs["eval_tuned_retention"], tuned_id), lambda: self.guard("tuned")
            )
        self._stage("report", digest(inputs["report"], tuned_id), self.report)

    def _prepare_sandbox(self) -> None:
        from pipelines.evaluation.retention_files import retention_eval_configs
        from pipelines.scoring.sandbox import prepare_sandbox

        guards = retention_eval_configs(self.job.pipeline.forgetting).values()
        metrics = {task.metric for task in self.job.pipeline.tasks.values()} | {guard.metric or "" for guard in guards}
        prepare_sandbox(metrics, self.reporter.working)

    def _say_changed_data(self) -> None:
        for name, prepared in self.run.manifest.get("data", {}).items():
            file = Path(prepared["file"])
            if file.is_file() and file_digest(file) != prepared["sha256"]:
                self.reporter.warn(
                    f"{file} has changed since task {name} was prepared; what depends on it is done again"
                )

    def _decoding(self) -> dict[str, Any]:
        from pipelines.data.prompt_format import PromptFormat
        from pipelines.evaluation.completions import generation_settings

        bounds = {name: self._bound(name) for name in self.job.pipeline.tasks}
        own = {"max_new_tokens": bounds if len(set(bounds.values())) > 1 else next(iter(bounds.values()))}
        return generation_settings(
            {**self.generation, **own}, PromptFormat.from_folder(self.base_folder, self.job.pipeline.chat_template)
        )

    def _revision(self) -> str:
        """The hub's commit where the base came from there, else the digest of its files."""
        return self.base_folder.name if self.base_folder.parent.name == "snapshots" else self.model_id

    def _stage(self, name: str, inputs: str, work: Callable[[], None]) -> None:
        if not self.run.run_stage(name, inputs, work):
            self.reporter.note(f"{name}: done already")

    def _write_config(self) -> None:
        import yaml

        write_text(
            self.run.path("config.yaml"), yaml.safe_dump(self.job.resolved(), sort_keys=False, allow_unicode=True)
        )

    # --- stages ---

    def prepare(self) -> None:
        from pipelines.checks.dataset import DatasetChecks
        from pipelines.checks.findings import raise_on_errors
        from pipelines.data.examples import load_examples
        from pipelines.data.prompt_format import PromptFormat
        from pipelines.data.splits import SPLITS
        from pipelines.data.tokenize_rows import tokenize_examples, write_splits
        from pipelines.modeling.base_models import context_length

        with self.reporter.working("Preparing rows"):
            prompts = PromptFormat.for_job(self.job, self.base_folder)
            checks = DatasetChecks(self.job, prompts, context_length(self.base_folder))
            rows = tokenize_examples(load_examples(self.job.pipeline), prompts)
            write_splits(checks.tap(rows), self.run.path("data"))
            findings = checks.findings()
        raise_on_errors(findings)
        for finding in findings:
            self.reporter.warn(str(finding.problem))
        data: dict[str, Any] = {}
        for name, task in self.job.pipeline.tasks.items():
            file = task.data if isinstance(task.data, str) else task.data.train
            counts = {split: checks.counts[name, split] for split in SPLITS}
            data[name] = {
                **counts,
                "file": file,
                "sha256": file_digest(Path(file)),
                "notes": checks.label_notes(name),
            }
        self.run.update(data=data, warnings=[str(finding.problem) for finding in findings])

    def complete(self, which: str) -> None:
        """The completions of every test row and probe, with the loss of each reference."""
        from pipelines.data.tokenize_rows import read_split

        folder = self.run.path(f"{which}.partial")
        shutil.rmtree(folder, ignore_errors=True)
        table = read_split(self.run.path("data"), "test")
        kept = self._base_cache(table) if which == "base" else None
        if kept is not None and kept.exists():
            shutil.copytree(kept, folder)
            self.reporter.note("base: this model has answered these prompts before; taken from the cache")
        else:
            self._answer(which, table, folder)
            if kept is not None:
                with self._keeping():
                    self._keep(folder, kept)
        self._publish(folder, which)

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """One model is asked several times; it is loaded when it is first needed, and gone from memory behind the block."""
        with contextlib.ExitStack() as self._open:
            self._asked: Evaluator | None = None
            yield
            self._asked = None

    def _model(self, which: str) -> Evaluator:
        """The base or the tuned model, here or spread over the workers of a cluster."""
        from pipelines.evaluation.evaluator import LocalEvaluator
        from pipelines.training.ray import on_ray, ray_evaluator

        if self._asked is None:
            tuned = self.run.path("model") if which == "tuned" else None
            with self.reporter.working(f"Loading the {which} model"):
                if on_ray(self.job):
                    self._asked = self._open.enter_context(ray_evaluator(self.job, self.base_folder, tuned))
                else:
                    self._asked = LocalEvaluator(self.job, self.base_folder, tuned)
        return self._asked

    def _answer(self, which: str, table: Sequence[dict[str, Any]], folder: Path) -> None:
        from pipelines.data.tokenize_rows import open_split
        from pipelines.modeling.token_dataset import TokenDataset

        model = self._model(which)
        self._write_probes(model, folder, which)
        write_jsonl(folder / "completions.jsonl", self._complete_rows(model, table, which))
        validation = TokenDataset.from_table(open_split(self.run.path("data"), "validation"))
        if which == "base" and len(validation):
            with self.reporter.working("Validation loss of the base"):
                write_json(folder / "validation.json", model.validation_losses(validation))

    def _keep(self, folder: Path, kept: Path) -> None:
        """Copies the base pass into the cache, for every later run of the same model and prompts."""
        aside = kept.with_name(f"{kept.name}.{self.run.name}.partial")
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        if kept.exists():
            shutil.rmtree(aside)
        else:
            aside.rename(kept)

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[None]:
        """Writes into the cache what the run has in its own folder already: a cache that is full does not end the run."""
        try:
            yield
        except OSError as error:
            self.reporter.warn(
                f"{cache_write_error(cache_folder(), error)}. Other runs will not find what this one has answered"
            )

    def _publish(self, folder: Path, which: str) -> None:
        from pipelines.storage.files import atomic_replace_dir

        atomic_replace_dir(folder, self.run.path(which))

    def _base_cache(self, table: Sequence[dict[str, Any]]) -> Path:
        from pipelines.data.tokenize_rows import read_split
        from pipelines.evaluation.completions import COMPLETIONS_FORMAT

        # The row's number stands in the answers: the same rows on other lines of their file are others.
        prompts = [
            [row["task"], row["row"], row["input_ids"], row["supervised_from"], self._bound(row["task"])]
            for row in table
        ]
        validation = [row["input_ids"] for row in read_split(self.run.path("data"), "validation")]
        probes = self.job.pipeline.report.sample_prompts
        key = digest(
            COMPLETIONS_FORMAT,
            self.model_id,
            prompts,
            [row["fields"] for row in table],
            validation,
            self.generation,
            self.job.ludwig.get("quantization"),
            file_digest(Path(probes)) if probes else None,
            self.job.pipeline.system,
            self.job.pipeline.chat_template,
            __version__,
            versions(),
            hardware()["gpu"],
        )
        return cache_entry("completions", key[:32])

    def _bound(self, task: str) -> int:
        bound = self.job.pipeline.tasks[task].max_new_tokens
        return int(bound if bound is not None else self.generation["max_new_tokens"])

    def _complete_rows(self, model: Evaluator, table: Sequence[dict[str, Any]], which: str) -> list[Any]:
        prompts = [row["input_ids"][: row["supervised_from"]] for row in table]
        references = [row["input_ids"][row["supervised_from"] :] for row in table]
        bounds = [self._bound(row["task"]) for row in table]
        with self.reporter.bar(f"{which.capitalize()} completions", len(table), "rows") as progress:
            answers = model.complete(prompts, self.generation, bounds, progress, references)
        return [
            {
                "task": row["task"],
                "row": row["row"],
                "prompt": row["prompt"],
                "reference": row["completion"],
                "completion": answer.text,
                "reference_nll": answer.reference_nll,
                "reference_tokens": len(row["input_ids"]) - row["supervised_from"],
                "num_generated_tokens": answer.num_generated_tokens,
                "finish_reason": answer.finish_reason,
                "fields": row["fields"],
            }
            for row, answer in zip(table, answers, strict=True)
        ]

    def _write_probes(self, model: Evaluator, folder: Path, which: str) -> None:
        from pipelines.data.prompt_format import PromptFormat
        from pipelines.data.sample_prompts import load_sample_prompts

        if not self.job.pipeline.report.sample_prompts:
            return
        probes = load_sample_prompts(Path(self.job.pipeline.report.sample_prompts))
        prompts = PromptFormat.from_folder(self.base_folder, self.job.pipeline.chat_template)
        texts = [prompts.render_prompt(probe["prompt"], self.job.pipeline.system) for probe in probes]
        bounds = [int(probe.get("max_new_tokens") or self.generation["max_new_tokens"]) for probe in probes]
        with self.reporter.bar(f"{which.capitalize()} answers to free prompts", len(texts), "prompts") as progress:
            answers = model.complete([prompts.encode_prompt(text) for text in texts], self.generation, bounds, progress)
        write_jsonl(
            folder / "sample_prompts.jsonl",
            [
                {
                    "title": probe.get("title"),
                    "prompt": probe["prompt"],
                    "completion": answer.text,
                    "num_generated_tokens": answer.num_generated_tokens,
                    "finish_reason": answer.finish_reason,
                }
                for probe, answer in zip(probes, answers, strict=True)
            ],
        )

    def train(self, inputs: str) -> None:
        from pipelines.training.ray import on_ray, train_on_ray
        from pipelines.training.train import train

        # Checkpoints of another config would be taken for the start of this training.
        marker = self.run.path("training", "inputs")
        if marker.exists() and marker.read_text(encoding="utf-8") != inputs:
            shutil.rmtree(marker.parent)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(inputs, encoding="utf-8")
        with self.reporter.steps("Training") as report:
            (train_on_ray if on_ray(self.job) else train)(self.job, self.run, self.base_folder, report)
        history = json.loads(self.run.path("model", "training.json").read_text(encoding="utf-8"))
        for note in history.get("notes", []):
            self.reporter.warn(note)
        if skipped := history.get("skipped"):
            self.reporter.warn(
                f"{len(skipped)} steps without a finite loss were passed over: {', '.join(map(str, skipped))}"
            )

    def guard(self, which: str) -> None:
        """The score of every item of every guard, for the base once a model."""
        from pipelines.evaluation.retention import retention_records
        from pipelines.evaluation.retention_files import retention_eval_configs
        from pipelines.forgetting.build import JobContext

        context, target = JobContext(self.job, self.run, self.base_folder), self.run.path("retention", f"{which}.jsonl")
        if not retention_eval_configs(self.job.pipeline.forgetting) and self.job.pipeline.continue_from is None:
            write_text(target, "")
            return
        inputs = stage_inputs(self.job, self.model_id)["eval_base_retention"]
        key = digest(inputs, self.job.ludwig.get("quantization"), __version__, versions(), hardware()["gpu"])
        kept = cache_entry("guards", f"{key[:32]}.jsonl") if which == "base" else None
        if kept is not None and kept.exists():
            write_text(target, kept.read_text(encoding="utf-8"))
            return
        guards = context.retention_evals
        lines: list[dict[str, Any]] = []
        model = self._model(which)
        with self.reporter.bar(f"{which.capitalize()} guards", len(guards), "guards") as progress:
            for guard in guards:
                lines += retention_records(guard, model.score_retention_eval(guard))
                progress(1)
        write_jsonl(target, lines)
        if kept is not None:
            with self._keeping():
                write_jsonl(kept, lines)

    def report(self) -> None:
        from pipelines.report import write_report

        with self.reporter.working("Report"):
            write_report(self.run.folder)
