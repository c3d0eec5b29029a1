"""The stages in their order: prepare → base completions → base guards → train → tuned completions → tuned guards → report."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import __version__
from pipelines.activity import doing
from pipelines.cache import cache_folder, cached, check_cache, unwritable
from pipelines.config import Job
from pipelines.runs import (
    Run,
    config_entries,
    digest,
    file_digest,
    hardware,
    machine_errors,
    refuse_other_config,
    versions,
    write_json,
    write_jsonl,
    write_text,
)
from pipelines.screen import Screen, quiet_libraries

if TYPE_CHECKING:
    from pipelines.passes import Pass

PREPARED_FORMAT = 2
"""Raised when prepared tokens change for the same inputs, so that finished stages are done again."""


def run_job(job: Job, run: Run, command: str, screen: Screen) -> None:
    """Does what is not done yet. Killed anywhere, the same call goes on from there."""
    with machine_errors(run.folder), run.locked():
        refuse_other_config(job.path, run)
        check_cache()
        Stages(job, run, command, screen).all()


class Stages:
    """The work of each stage and what it depends on."""

    def __init__(self, job: Job, run: Run, command: str, screen: Screen) -> None:
        self.job, self.run, self.command, self.screen = job, run, command, screen
        with screen.working(f"Base model {job.ludwig['base_model']}"):
            quiet_libraries()
            # torch is imported here, which takes half a minute on a busy machine.
            from pipelines.forgetting.sequence import starting_model
            from pipelines.models import fingerprint

            self.base_folder = starting_model(job, run)
            self.model_id = fingerprint(self.base_folder)
        self.generation = dict(job.ludwig["generation"])

    def all(self) -> None:
        pipeline, ludwig = self.job.pipeline, self.job.ludwig
        inputs = self._inputs()
        self.run.update(
            name=self.run.name, **config_entries(self.job.path, self.run.folder), command=self.command, seed=pipeline.seed,
            base_model=ludwig["base_model"], base_revision=self._revision(), after=pipeline.after, generation=self.generation,
            versions=versions(), hardware=hardware(),
        )  # fmt: skip
        self._write_config()
        self._say_changed_data()
        self._stage("prepare", inputs["prepare"], self.prepare)
        with self._asking():
            self._stage("base", inputs["base"], lambda: self.complete("base"))
            self._stage("base guards", inputs["base guards"], lambda: self.guard("base"))
        self._stage("train", inputs["train"], lambda: self.train(inputs["train"]))
        with self._asking():
            self._stage("tuned", inputs["tuned"], lambda: self.complete("tuned"))
            self._stage("tuned guards", inputs["tuned guards"], lambda: self.guard("tuned"))
        self._stage("report", inputs["report"], self.report)

    def _say_changed_data(self) -> None:
        for name, prepared in self.run.manifest.get("data", {}).items():
            file = Path(prepared["file"])
            if file.is_file() and file_digest(file) != prepared["sha256"]:
                self.screen.warn(f"{file} has changed since task {name} was prepared; what depends on it is done again")

    def _revision(self) -> str:
        """The hub's commit where the base came from there, else the digest of its files."""
        return self.base_folder.name if self.base_folder.parent.name == "snapshots" else self.model_id

    def _inputs(self) -> dict[str, str]:
        """What each stage depends on, so that a changed gate asks for a new report alone, a changed metric, probe or
        bound for no new training, and a changed seed for no new base pass."""
        from pipelines.tasks import named_files

        pipeline, ludwig = self.job.pipeline, self.job.ludwig
        with doing("reading the data files"):
            files = self._data_files()
        probes = pipeline.report.prompts
        tasks = pipeline.tasks.items()
        not_in_tokens: dict[str, Any] = {
            "seed": True, "mix": True, "temperature": True, "report": True, "forgetting": True, "after": True, "on_nan": True,
            "tasks": {"__all__": {"metric", "group", "max_new_tokens", "weight"}},
        }  # fmt: skip
        data = {file: files[file] for where, file in named_files(self.job) if "tasks" in where}
        tokens = pipeline.model_dump(mode="json", exclude=not_in_tokens)
        shared = [PREPARED_FORMAT, self.model_id, tokens, data, ludwig.get("preprocessing"), ludwig.get("quantization")]
        bounds = {name: task.max_new_tokens for name, task in tasks}
        mix = [pipeline.seed, pipeline.mix, pipeline.temperature, {name: task.weight for name, task in tasks}]
        training = {key: value for key, value in ludwig.items() if key not in ("generation", "base_model")}
        scoring = {name: [task.metric, task.group] for name, task in tasks}
        prepare = digest(*shared, files, scoring)
        base = digest(*shared, self.generation, bounds, files.get(probes or ""))
        guards = digest(self.model_id, pipeline.system, pipeline.chat_template, self._guard_files(), pipeline.after)
        forgetting = pipeline.forgetting.model_dump(mode="json", exclude={"guards"})
        train = digest(*shared, mix, training, forgetting, pipeline.forgetting.every and guards)
        tuned, tuned_guards = digest(train, base), digest(train, guards)
        report = digest(base, tuned, tuned_guards, scoring, pipeline.report.model_dump(mode="json"))
        return {
            "prepare": prepare, "base": base, "base guards": guards, "train": train,
            "tuned": tuned, "tuned guards": tuned_guards, "report": report,
        }  # fmt: skip

    def _stage(self, name: str, inputs: str, work: Callable[[], None]) -> None:
        if not self.run.stage(name, inputs, work):
            self.screen.note(f"{name}: done already")

    def _data_files(self) -> dict[str, str]:
        """sha256 of every file that the job names but for its guards'. Raises DataError for each that is missing, and for probes
        that are none."""
        from pipelines.tasks import check_files, named_files, read_probes

        check_files(self.job)
        if self.job.pipeline.report.prompts:
            read_probes(Path(self.job.pipeline.report.prompts))
        return {file: file_digest(Path(file)) for where, file in named_files(self.job) if "guards" not in where}

    def _guard_files(self) -> list[Any]:
        """Each guard with the sha256 of its rows. Raises DataError for rows that are no guard's."""
        from pipelines.forgetting.files import check_guards, guard_file, guards_of

        check_guards(self.job.pipeline.forgetting)
        guards = guards_of(self.job.pipeline.forgetting).items()
        return [[name, guard.model_dump(exclude={"data"}), file_digest(guard_file(guard))] for name, guard in guards]

    def _write_config(self) -> None:
        import yaml

        write_text(self.run.path("config.yaml"), yaml.safe_dump(self.job.resolved(), sort_keys=False, allow_unicode=True))

    # --- stages ---

    def prepare(self) -> None:
        from pipelines.models import context_length
        from pipelines.preflight import Preflight, refuse_serious
        from pipelines.prepare import prepare_rows, write_rows
        from pipelines.prompts import PromptFormat
        from pipelines.tasks import SPLITS, load_examples

        with self.screen.working("Preparing rows"):
            prompts = PromptFormat.of_folder(self.base_folder, self.job.pipeline.chat_template)
            preflight = Preflight(self.job, prompts, context_length(self.base_folder))
            rows = prepare_rows(load_examples(self.job.pipeline), prompts)
            write_rows(preflight.watch(rows), self.run.path("data"))
            findings = preflight.findings()
        refuse_serious(findings)
        for finding in findings:
            self.screen.warn(str(finding.problem))
        data: dict[str, Any] = {}
        for name, task in self.job.pipeline.tasks.items():
            file = task.data if isinstance(task.data, str) else task.data.train
            counts = {split: preflight.counts[name, split] for split in SPLITS}
            data[name] = {**counts, "file": file, "sha256": file_digest(Path(file))}
        self.run.update(data=data, warnings=[str(finding.problem) for finding in findings])

    def complete(self, which: str) -> None:
        """The completions of every test row and probe, with the loss of each reference."""
        from pipelines.prepare import read_table

        folder = self.run.path(f"{which}.partial")
        shutil.rmtree(folder, ignore_errors=True)
        table = read_table(self.run.path("data"), "test")
        kept = self._base_cache(table) if which == "base" else None
        if kept is not None and kept.exists():
            shutil.copytree(kept, folder)
            self.screen.note("base: this model has answered these prompts before; taken from the cache")
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
            self._asked: Pass | None = None
            yield
            self._asked = None

    def _model(self, which: str) -> Pass:
        """The base or the tuned model, here or spread over the workers of a cluster."""
        from pipelines.cluster import on_ray, ray_pass
        from pipelines.passes import LocalPass

        if self._asked is None:
            tuned = self.run.path("model") if which == "tuned" else None
            with self.screen.working(f"Loading the {which} model"):
                if on_ray(self.job):
                    self._asked = self._open.enter_context(ray_pass(self.job, self.base_folder, tuned))
                else:
                    self._asked = LocalPass(self.job, self.base_folder, tuned)
        return self._asked

    def _answer(self, which: str, table: Sequence[dict[str, Any]], folder: Path) -> None:
        from pipelines.engine.token_rows import TokenRows
        from pipelines.prepare import open_table

        model = self._model(which)
        self._write_probes(model, folder, which)
        write_jsonl(folder / "completions.jsonl", self._complete_rows(model, table, which))
        validation = TokenRows.of(open_table(self.run.path("data"), "validation"))
        if which == "base" and len(validation):
            with self.screen.working("Validation loss of the base"):
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
            self.screen.warn(f"{unwritable(cache_folder(), error)}. Other runs will not find what this one has answered")

    def _publish(self, folder: Path, which: str) -> None:
        from pipelines.runs import replace_folder

        replace_folder(folder, self.run.path(which))

    def _base_cache(self, table: Sequence[dict[str, Any]]) -> Path:
        from pipelines.prepare import read_table

        prompts = [[row["task"], row["input_ids"], row["supervised_from"], self._bound(row["task"])] for row in table]
        validation = [row["input_ids"] for row in read_table(self.run.path("data"), "validation")]
        probes = self.job.pipeline.report.prompts
        key = digest(
            self.model_id, prompts, [row["fields"] for row in table], validation,
            self.generation, self.job.ludwig.get("quantization"),
            file_digest(Path(probes)) if probes else None, self.job.pipeline.system, self.job.pipeline.chat_template,
            __version__, versions(), hardware()["gpu"],
        )  # fmt: skip
        return cached("completions", key[:32])

    def _bound(self, task: str) -> int:
        bound = self.job.pipeline.tasks[task].max_new_tokens
        return int(bound if bound is not None else self.generation["max_new_tokens"])

    def _complete_rows(self, model: Pass, table: Sequence[dict[str, Any]], which: str) -> list[Any]:
        prompts = [row["input_ids"][: row["supervised_from"]] for row in table]
        references = [row["input_ids"][row["supervised_from"] :] for row in table]
        bounds = [self._bound(row["task"]) for row in table]
        with self.screen.bar(f"{which.capitalize()} completions", len(table), "rows") as progress:
            answers = model.complete(prompts, self.generation, bounds, progress, references)
        return [
            {
                "task": row["task"], "row": row["row"], "prompt": row["prompt"], "reference": row["completion"],
                "completion": answer.text, "reference_loss": answer.reference_loss,
                "reference_tokens": len(row["input_ids"]) - row["supervised_from"],
                "new_tokens": answer.new_tokens, "finished": answer.finished, "fields": row["fields"],
            }
            for row, answer in zip(table, answers, strict=True)
        ]  # fmt: skip

    def _write_probes(self, model: Pass, folder: Path, which: str) -> None:
        from pipelines.prompts import PromptFormat
        from pipelines.tasks import read_probes

        if not self.job.pipeline.report.prompts:
            return
        probes = read_probes(Path(self.job.pipeline.report.prompts))
        prompts = PromptFormat.of_folder(self.base_folder, self.job.pipeline.chat_template)
        texts = [prompts.prompt_text(probe["prompt"], self.job.pipeline.system) for probe in probes]
        bounds = [int(probe.get("max_new_tokens") or self.generation["max_new_tokens"]) for probe in probes]
        with self.screen.bar(f"{which.capitalize()} answers to free prompts", len(texts), "prompts") as progress:
            answers = model.complete([prompts.prompt_ids(text) for text in texts], self.generation, bounds, progress)
        write_jsonl(
            folder / "probes.jsonl",
            [
                {"title": probe.get("title"), "prompt": probe["prompt"], "completion": answer.text,
                 "new_tokens": answer.new_tokens, "finished": answer.finished}
                for probe, answer in zip(probes, answers, strict=True)
            ],
        )  # fmt: skip

    def train(self, inputs: str) -> None:
        from pipelines.cluster import on_ray, train_on_ray
        from pipelines.training import train

        # Checkpoints of another config would be taken for the start of this training.
        marker = self.run.path("training", "inputs")
        if marker.exists() and marker.read_text(encoding="utf-8") != inputs:
            shutil.rmtree(marker.parent)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(inputs, encoding="utf-8")
        with self.screen.steps("Training") as report:
            (train_on_ray if on_ray(self.job) else train)(self.job, self.run, self.base_folder, report)
        history = json.loads(self.run.path("model", "training.json").read_text(encoding="utf-8"))
        for note in history.get("notes", []):
            self.screen.warn(note)
        if skipped := history.get("skipped"):
            self.screen.warn(f"{len(skipped)} steps without a finite loss were passed over: {', '.join(map(str, skipped))}")

    def guard(self, which: str) -> None:
        """The score of every item of every guard, for the base once a model."""
        from pipelines.forgetting.build import Start
        from pipelines.forgetting.files import guards_of
        from pipelines.forgetting.guards import guard_lines

        start, target = Start(self.job, self.run, self.base_folder), self.run.path("guards", f"{which}.jsonl")
        if not guards_of(self.job.pipeline.forgetting) and self.job.pipeline.after is None:
            write_text(target, "")
            return
        quantization = self.job.ludwig.get("quantization")
        key = digest(self._inputs()["base guards"], quantization, __version__, versions(), hardware()["gpu"])
        kept = cached("guards", f"{key[:32]}.jsonl") if which == "base" else None
        if kept is not None and kept.exists():
            write_text(target, kept.read_text(encoding="utf-8"))
            return
        guards = start.guards
        lines: list[dict[str, Any]] = []
        model = self._model(which)
        with self.screen.bar(f"{which.capitalize()} guards", len(guards), "guards") as progress:
            for guard in guards:
                lines += guard_lines(guard, model.score_guard(guard))
                progress(1)
        write_jsonl(target, lines)
        if kept is not None:
            with self._keeping():
                write_jsonl(kept, lines)

    def report(self) -> None:
        from pipelines.report import write_report

        with self.screen.working("Report"):
            write_report(self.run.folder)
