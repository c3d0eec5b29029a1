"""Our trainer, registered with Ludwig in place of its own for `trainer.type: finetune`.

Ludwig keeps the loop: epochs, schedule, clipping, evaluation rounds, early stopping, best checkpoint. What it does
with tokens is replaced: rows arrive tokenised, a step is the mean over all its supervised tokens, validation is that
mean per task, a resumed run goes on where it was cut off, and Ctrl-C does not pass for a finished training.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from ludwig.trainers.trainer_llm import FineTuneTrainer as LudwigFineTuneTrainer
from ludwig.utils.trainer_utils import append_metrics, initialize_trainer_metric_dict

from pipelines.errors import MachineError, RunError
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.adapters import trained_weights
from pipelines.modeling.packing import supervised_logits, token_losses
from pipelines.modeling.process_group import ProcessGroup
from pipelines.modeling.token_dataset import validation_losses
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.training.checkpoint import CorruptCheckpointError, SafetensorsCheckpoint
from pipelines.training.ludwig_dataset import LudwigTokenDataset
from pipelines.training.micro_batches import MicroBatches
from pipelines.training.optimizers import check_freezing, check_optimizer

if TYPE_CHECKING:
    from pipelines.training.callback import TrainerCallback


class FineTuneTrainer(LudwigFineTuneTrainer):
    """Trains on `LudwigTokenDataset`s; `history` holds what the report shows.

    Metrics recorded: `train_loss` [{step, loss}], `validation_loss` [{step, loss, tasks: {task: loss}}], in nats
    per supervised token of the tasks; `rows`, `tokens`, `supervised_tokens` of theirs seen; where strategies against
    forgetting act, `forgetting` [{step, term: nats, penalty_to_task_grad_norm_ratio}], the last the norm of what they add to the
    gradient by that of the tasks' own; `micro_batch` {rows or tokens: n} where memory has decided it.
    """

    resume: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.history: dict[str, Any] = {
            "train_loss": [],
            "validation_loss": [],
            "rows": 0,
            "tokens": 0,
            "supervised_tokens": 0,
        }
        self.strategies: list[Strategy] = []
        self.step_callback: TrainerCallback | None = None
        self.max_nonfinite_steps = 0
        self.stop_requested = False
        self.process_group = ProcessGroup.current()
        self.micro_batches = MicroBatches(self.batch_size, self.history)
        # Evaluation on the training set is the mean of the steps since the last one, see `evaluation`.
        self.evaluate_training_set = True

    def prepare(self) -> None:
        """As Ludwig's, which logs a pattern that freezes nothing and trains every weight. Raises ConfigError, MachineError."""
        check_optimizer(self.config.optimizer)
        if self.config.layers_to_freeze_regex:
            check_freezing(self.model, self.config.layers_to_freeze_regex)
        super().prepare()

    # --- one step ---

    def _batch_to_tensors(self, batch: TokenSequences) -> tuple[TokenSequences, None]:
        return batch, None

    def train_step(
        self, inputs: TokenSequences, targets: None = None, should_step: bool = True, profiler: Any = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """One optimiser step: the gradient of the mean loss over all supervised tokens of `inputs`, and of the
        strategies' terms beside it."""
        self.dist_model.train()
        supervised = inputs.supervised_tokens + sum(strategy.sample_rows(inputs) for strategy in self.strategies)
        loss = self._backward_rows(self.process_group.shard(inputs), inputs[0:1], supervised)
        self._all_reduce_gradients(loss)
        task_gradients = self._backward_strategies(supervised)
        loss = loss * (supervised / inputs.supervised_tokens)
        if self._is_finite(loss):
            self._optimizer_step(self.dist_model.parameters())
            for strategy in self.strategies:
                strategy.after_step(task_gradients)
            self._record(inputs, loss, task_gradients)
        else:
            self._skip_nonfinite_step(loss)
        self.distributed.zero_grad(self.optimizer)
        return loss, {name: loss for name in self.model.output_features}, inputs.tokens

    def _is_finite(self, loss: torch.Tensor) -> bool:
        gradients = [weight.grad for weight in trained_weights(self.model.model) if weight.grad is not None]
        return bool(torch.isfinite(loss) and torch.isfinite(torch.nn.utils.get_total_norm(gradients)))

    def _skip_nonfinite_step(self, loss: torch.Tensor) -> None:
        """A step that would spoil the weights is not taken. Raises RunError with its rows where no more may be skipped."""
        step, skipped = self._step, self.history.setdefault("skipped", [])
        skipped.append(step)
        if len(skipped) > self.max_nonfinite_steps:
            what = "the gradient" if torch.isfinite(loss) else "the loss"
            raise RunError(
                f"step {step}: {what} is not a finite number; the rows of the step: {self._loop['batcher'].describe_batch()}. Lower "
                f"trainer.learning_rate, look at the rows, or write pipeline.max_nonfinite_steps: {len(skipped) + 2}; nothing of this "
                f"step was kept"
            )

    @property
    def _step(self) -> int:
        """The number of the step at hand, from 1."""
        return len(self.history["train_loss"]) + len(self.history.get("skipped", [])) + 1

    def _backward_rows(self, rows: TokenSequences, dummy_batch: TokenSequences, supervised: int) -> torch.Tensor:
        """Adds the gradients of the tasks' rows, in parts that memory allows. Running out of it, the step starts anew with
        smaller ones. `dummy_batch`: what goes through the model where another worker has more parts."""
        random = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None
        if self.micro_batches.size is None and (len(rows) or self.process_group.lockstep):
            with self.micro_batches.calibrate(rows if len(rows) else dummy_batch, self.model.model) as longest:
                self._backward_tasks(longest, supervised)
            self._restart_step(*random)
        while True:
            loss = torch.zeros((), device=self.device)
            try:
                parts = self.micro_batches.split(rows) if len(rows) else ()
                for part, counts in self.process_group.lockstep_batches(parts, dummy_batch):
                    # Of infinitely many tokens each is worth nothing.
                    loss += self._backward_tasks(part, supervised if counts else math.inf)
                return loss
            except torch.OutOfMemoryError:
                pass  # the traceback holds what the pass had kept, so what follows stands behind it
            if self.process_group.lockstep or not self.micro_batches.halve(rows):
                longest_row = max(map(len, [*rows.input_ids, *dummy_batch.input_ids]))
                what, mend = f"one row of {longest_row} tokens", "shorter rows"
                if self.process_group.lockstep:
                    what, mend = f"rows of up to {longest_row} tokens", "a smaller trainer.batch_size, shorter rows"
                raise MachineError(
                    f"memory is too small for {what}; take {mend}, a smaller base_model, an adapter, or quantization"
                )
            self._restart_step(*random)

    def _restart_step(self, cpu: torch.Tensor, cuda: torch.Tensor | None) -> None:
        """As before the first row of the step."""
        self.distributed.zero_grad(self.optimizer)
        for strategy in self.strategies:
            strategy.reset_step()
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda)
            torch.cuda.empty_cache()

    def _backward_tasks(self, rows: TokenSequences, supervised: float) -> torch.Tensor:
        """Adds the gradients of one micro-batch; its share of the step's mean loss."""
        with self._autocast():
            if any(strategy.needs_logits for strategy in self.strategies):
                logits, targets = supervised_logits(self.model.model, rows)
                part = F.cross_entropy(logits, targets, reduction="none").float().sum() / supervised
                terms = [
                    strategy.task_loss(rows, logits, supervised)
                    for strategy in self.strategies
                    if strategy.needs_logits
                ]
            else:
                part, terms = token_losses(self.model.model, rows).sum() / supervised, []
        self.distributed.backward(sum(terms, part), self.dist_model)
        return part.detach()

    def _backward_strategies(self, supervised: int) -> list[torch.Tensor]:
        """Adds the gradients of the strategies; returns those that the tasks' rows alone have given."""
        if not self.strategies:
            return []
        weights = trained_weights(self.model.model)
        task_gradients = [torch.zeros_like(one) if one.grad is None else one.grad.detach().clone() for one in weights]
        for strategy in self.strategies:
            terms = strategy.extra_losses(supervised)
            while True:
                with self._autocast():
                    term = next(terms, None)
                if term is None:
                    break
                self.distributed.backward(term, self.dist_model)
        self._all_reduce_gradients(but=task_gradients)
        for strategy in self.strategies:
            strategy.add_gradients()
        added = [one.grad - task for one, task in zip(weights, task_gradients, strict=True) if one.grad is not None]
        self._added = torch.nn.utils.get_total_norm(added)
        return task_gradients

    def _all_reduce_gradients(self, *more: torch.Tensor, but: Sequence[torch.Tensor] = ()) -> None:
        """Each gradient, and `more`, becomes its sum over the workers; `but` is the part that they all have already."""
        if self.process_group.world_size == 1:
            return
        weights = trained_weights(self.model.model)
        for weight in weights:
            # Every worker sends as much, be it zero: one may have had no row that uses a weight.
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for gradient, part in zip(gradients, but, strict=bool(but)):
            gradient.sub_(part)
        self.process_group.all_reduce_sum([*more, *gradients])
        for gradient, part in zip(gradients, but, strict=bool(but)):
            gradient.add_(part)

    def _record(self, inputs: TokenSequences, loss: torch.Tensor, task_gradients: list[torch.Tensor]) -> None:
        step = self._step
        self.history["train_loss"].append({"step": step, "loss": float(loss)})
        self.history["rows"] += len(inputs)
        self.history["tokens"] += inputs.tokens
        self.history["supervised_tokens"] += inputs.supervised_tokens
        if not self.strategies:
            return
        terms = {name: value for strategy in self.strategies for name, value in strategy.metrics().items()}
        pulls = [strategy.penalty_grad_norm for strategy in self.strategies]
        by_tasks = float(torch.nn.utils.get_total_norm(task_gradients))
        ratio = math.hypot(float(self._added), *pulls) / by_tasks if by_tasks else None
        entry = {"step": step, **terms, "penalty_to_task_grad_norm_ratio": ratio}
        self.history.setdefault("forgetting", []).append(entry)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        """bf16 on a GPU that has it; fp32 everywhere else."""
        if torch.device(self.device).type == "cuda" and torch.cuda.is_bf16_supported():
            with torch.autocast("cuda", torch.bfloat16):
                yield
        else:
            yield

    # --- evaluation ---

    def evaluation(
        self, dataset: LudwigTokenDataset, dataset_name: str, metrics_log: Any, batch_size: int, progress_tracker: Any
    ) -> Any:
        if dataset_name == "train":
            # Ludwig would run over the whole training set again; the steps just taken say nearly the same.
            evaluated = [entry["step"] for entry in self.history["validation_loss"]]
            since = evaluated[-1] if evaluated else 0
            recent = [entry["loss"] for entry in self.history["train_loss"] if entry["step"] > since]
            loss = sum(recent) / len(recent) if recent else math.nan
        else:
            self.dist_model.eval()
            with self._autocast():
                losses = validation_losses(self.model.model, dataset.data, self.process_group)
            self.dist_model.train()
            loss = losses["loss"]
            self.history["validation_loss"].append({"step": progress_tracker.steps, **losses})
        # Ludwig writes these to a file after each round; it would decode every token of the data set for them.
        progress_tracker.llm_eval_examples = {"inputs": [], "targets": [], "outputs": []}
        results = {name: {"loss": loss} for name in [*self.model.output_features, "combined"]}
        return append_metrics(self.model, dataset_name, results, metrics_log, progress_tracker)

    # --- checkpoints, resume, interrupt ---

    def create_checkpoint_handle(self) -> SafetensorsCheckpoint:
        stateful: list[Any] = [*self.strategies, *([self.step_callback] if self.step_callback is not None else [])]
        self._checkpoint = SafetensorsCheckpoint(
            self.distributed, self.model, self.optimizer, self.scheduler, history=self.history, stateful=stateful
        )
        return self._checkpoint

    def _create_or_resume_progress_tracker(
        self, tracker_path: str, folder: str, checkpoint: Any, output_features: Any
    ) -> Any:
        """Ludwig would start afresh where a checkpoint cannot be read; ours takes the one before, or says so and stops."""
        tracker = None
        if self.resume:
            try:
                tracker = self._checkpoint.resume(Path(folder))
            except CorruptCheckpointError as error:
                raise RunError(f"{error}; remove {Path(folder).parents[1]} to train from the start") from None
        if tracker is None:
            resume, self.resume = self.resume, False
            tracker = super()._create_or_resume_progress_tracker(tracker_path, folder, checkpoint, output_features)
            self.resume = resume
        else:
            for split in ("train_metrics", "validation_metrics", "test_metrics"):
                # JSON knows no defaults, which are all that stands there before the first round.
                log = initialize_trainer_metric_dict(output_features)
                for name, metrics in getattr(tracker, split).items():
                    log[name].update(metrics)
                setattr(tracker, split, log)
        self._checkpoint.tracker = tracker
        return tracker

    def _train_loop(self, *arguments: Any) -> tuple[bool, bool]:
        self._loop = loop = inspect.signature(super()._train_loop).bind(*arguments).arguments
        tracker, batcher = loop["progress_tracker"], loop["batcher"]
        # The schedule that Ludwig has just built is the one to save and to put back.
        self._checkpoint.scheduler = self.scheduler
        self._restore_scheduler_and_rng()
        if "stopped_by_retention" in self.history or 0 < loop["early_stopping_steps"] <= tracker.last_improvement_steps:
            return True, False  # cut off between the decision to end and the end
        tracker.epoch, done = divmod(tracker.steps, batcher.steps_per_epoch)
        batcher.set_epoch(tracker.epoch, tracker.batch_size)
        batcher.skip(done)
        stop, broken = super()._train_loop(*arguments)
        if (
            not (stop or broken)
            and tracker.steps == self.total_steps
            and tracker.steps % loop["final_steps_per_checkpoint"]
        ):
            # Ludwig leaves the steps behind the last full round unjudged; the last weights may be the best.
            names = inspect.signature(self._eval_and_checkpoint).parameters
            known = {name: value for name, value in loop.items() if name in names}
            stop, broken = self._eval_and_checkpoint(loss=None, all_losses={}, **known)
        return stop, broken

    def _restore_scheduler_and_rng(self) -> None:
        """Puts back what a checkpoint holds and Ludwig has built or seeded anew since."""
        pending, self._checkpoint.pending = self._checkpoint.pending, None
        if pending is None:
            return
        self.scheduler.load_state_dict(pending["scheduler"])
        torch.set_rng_state(pending["random"]["cpu"])
        if "cuda" in pending["random"]:
            torch.cuda.set_rng_state(pending["random"]["cuda"])

    def callback(self, fn: Any, coordinator_only: bool = True) -> None:
        """Ludwig calls most callbacks on the coordinator alone; ours measure guards and may end the training, for all."""
        super().callback(fn, coordinator_only=False)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As Ludwig's, with SIGTERM, which a cluster or a shutdown sends, read as Ctrl-C."""
        if threading.current_thread() is not threading.main_thread():
            return super().train(*args, **kwargs)
        before = signal.signal(signal.SIGTERM, self.set_steps_to_1_or_quit)
        try:
            return super().train(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, before)

    def set_steps_to_1_or_quit(self, signum: int, frame: Any) -> None:
        """Ctrl-C, which Ludwig hands on to here, where it would end the loop and take the half-trained model for the result. The
        first ends the training behind its step, the second at once."""
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        print("\nstopping behind this step; once more stops at once", file=sys.stderr)

    def stop_if_requested(self) -> None:
        """Between two steps, when all that the last one called for is done."""
        if self.stop_requested:
            self.save_checkpoint(
                self._loop["progress_tracker"], self._loop["save_path"], self._loop["checkpoint_manager"]
            )
            raise KeyboardInterrupt
