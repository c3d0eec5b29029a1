"""The trainer that replaces Ludwig's for `trainer.type: finetune`.

Ludwig keeps the loop: epochs, schedule, clipping, evaluation rounds, early stopping, best checkpoint. This trainer
replaces what Ludwig does with tokens: rows are tokenized before, the loss of a step is the mean over all its
supervised tokens, the validation loss is that mean per task, a resumed training is bitwise identical to an
uninterrupted one, and an interrupted training is not taken for a finished one.

The order of the hooks in a training. Ludwig's `LudwigModel.train` calls `FineTuneTrainer.train`, which calls:

1. `LudwigCallback.on_trainer_train_setup`: sets up the strategies and the step callback at the starting weights
2. `create_checkpoint_handle` and `_create_or_resume_progress_tracker`: load the latest checkpoint, if there is one
3. `_train_loop`, once per epoch: restores what Ludwig has overwritten since the load, and calls for every step
   1. `LudwigCallback.on_batch_start`: after a signal, saves a checkpoint and raises KeyboardInterrupt
   2. `train_step`: one optimizer step, with the hooks of `Strategy`
   3. `LudwigCallback.on_batch_end`: the step callback (retention evals), and progress
   4. `evaluation`, every `steps_per_checkpoint` steps: the validation loss and a checkpoint
4. `LudwigCallback.on_trainer_train_teardown`: completes the history
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ludwig.utils.trainer_utils import append_metrics

from pipelines.errors import RunError
from pipelines.forgetting.strategy import Strategy
from pipelines.modeling.adapters import trainable_parameters
from pipelines.modeling.cuda_graphs import MicroBatchGraphs
from pipelines.modeling.deferred_scalars import DeferredScalar
from pipelines.modeling.hardware import current_hardware, rng_state, set_rng_state
from pipelines.modeling.loss_scaling import LossScaler
from pipelines.modeling.memory import machine_error_on_out_of_memory, release_cached_memory, retry_smaller
from pipelines.modeling.mixed_precision import autocast
from pipelines.modeling.packing import cross_entropy, supervised_logits, token_losses
from pipelines.modeling.process_group import ProcessGroup
from pipelines.modeling.token_dataset import validation_losses
from pipelines.modeling.token_sequences import TokenSequences
from pipelines.training.checkpoint import CorruptCheckpointError, SafetensorsCheckpoint, restore_metric_logs
from pipelines.training.gradient_reduction import GradientReduction, mark_last
from pipelines.training.gradients import added_gradient_norm, all_finite, gradient_norm
from pipelines.training.graphs import training_graphs
from pipelines.training.history import current_step, loss_since_last_evaluation, record_step, record_strategies
from pipelines.training.interrupts import InterruptibleTrainer
from pipelines.training.ludwig_dataset import LudwigTokenDataset
from pipelines.training.micro_batches import OPTIMIZER_ADVICE, MicroBatches, training_memory_error
from pipelines.training.optimizers import use_fused_step
from pipelines.training.strategy_rows import add_own_row_gradients

if TYPE_CHECKING:
    from pipelines.training.callback import StepCallback


class FineTuneTrainer(InterruptibleTrainer):
    """Trains on `LudwigTokenDataset`s and records `history`, which becomes training.json.

    `pipelines.storage.records.TrainingHistory` defines the keys of `history`. Rows and tokens of the strategies are not
    counted there.
    """

    resume: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        hardware = current_hardware()
        super().__init__(*args, **{**kwargs, "device": str(hardware.device)})
        self.loss_scaler = LossScaler(hardware.scales_loss)
        self.history: dict[str, Any] = {"train_loss": [], "validation_loss": []}
        self.history |= {"rows": 0, "tokens": 0, "supervised_tokens": 0}
        self.strategies: list[Strategy] = []
        self.step_callback: StepCallback | None = None
        self.max_nonfinite_steps = 0
        self.process_group = ProcessGroup.current()
        self.micro_batches = MicroBatches(self.batch_size, self.history)
        # The loss on the training set is the mean of the steps since the last evaluation, see `evaluation`.
        self.evaluate_training_set = True

    @cached_property
    def weights(self) -> list[torch.nn.Parameter]:
        """The trained weights. Walking through all modules of a large model in every step would take milliseconds."""
        return trainable_parameters(self.model.model)

    @cached_property
    def graphs(self) -> MicroBatchGraphs | None:
        """CUDA graphs of the micro-batches, where they apply."""
        return training_graphs(self.model.model, self.process_group)

    @cached_property
    def reduction(self) -> GradientReduction:
        return GradientReduction(self.process_group, trainable_parameters(self.model.model))

    def prepare(self) -> None:
        """Creates the optimizer. Raises MachineError if the device cannot run it."""
        super().prepare()
        use_fused_step(self.optimizer)

    # --- one step ---

    def _batch_to_tensors(self, batch: TokenSequences) -> tuple[TokenSequences, None]:
        return batch, None

    def train_step(
        self, inputs: TokenSequences, targets: None = None, should_step: bool = True, profiler: Any = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], int]:
        """Takes one optimizer step.

        The gradient is that of the mean loss over the supervised tokens of `inputs` and of the rows that strategies
        add to it, plus the gradients of the strategies' other losses. A step with a non-finite loss or gradient does
        not change the weights.
        """
        if not (self.dist_model.training and self.model.model.training):
            self.dist_model.train()
        weights = self.weights
        loss_denominator = inputs.num_supervised_tokens + sum(
            strategy.begin_step(inputs) for strategy in self.strategies
        )
        loss = self._accumulate_task_row_gradients(self.process_group.shard(inputs), inputs[0:1], loss_denominator)
        self.reduction.finish(loss)
        task_row_gradients = self._accumulate_strategy_gradients(loss_denominator)
        loss = loss * (loss_denominator / inputs.num_supervised_tokens)
        self._grad_norm = gradient_norm(weights)
        norms = self._grad_norm, torch.nn.utils.get_total_norm(task_row_gradients)
        # All scalars of the step are computed before the first is read: the host waits for the device once.
        mean_loss, grad_norm, task_row_norm = map(float, list(map(DeferredScalar, (loss, *norms))))
        is_finite = math.isfinite(mean_loss) and math.isfinite(grad_norm)
        has_overflowed = self.loss_scaler.update()
        if is_finite:
            with machine_error_on_out_of_memory("the optimizer's step", OPTIMIZER_ADVICE):
                self._optimizer_step(weights)
            for strategy in self.strategies:
                strategy.after_step(task_row_gradients)
            record_step(self.history, inputs, mean_loss)
            if self.strategies:
                record_strategies(self.history, self.strategies, float(self._strategy_grad_norm), task_row_norm)
        elif has_overflowed:
            self.history.setdefault("overflowed_steps", []).append(self._step)
        else:
            self._skip_nonfinite_step(mean_loss)
        self.distributed.zero_grad(self.optimizer)
        loss = torch.tensor(mean_loss)  # on the CPU, where Ludwig reads it
        return loss, {name: loss for name in self.model.output_features}, inputs.num_tokens

    def clip_grads(self, variables: Iterable[torch.nn.Parameter]) -> None:
        """Clips the gradients as configured, with the norm that `train_step` has computed."""
        clipping = self.gradient_clipping_config
        if clipping.clipglobalnorm and not clipping.clipnorm and not clipping.clipvalue:
            torch.nn.utils.clip_grads_with_norm_(variables, clipping.clipglobalnorm, self._grad_norm)
        else:
            super().clip_grads(variables)

    def _skip_nonfinite_step(self, loss: float) -> None:
        """Records a skipped step. Raises RunError, which names the step's rows, after `max_nonfinite_steps` of them."""
        step, skipped = self._step, self.history.setdefault("skipped_steps", [])
        skipped.append(step)
        if len(skipped) > self.max_nonfinite_steps:
            name = "gradient" if math.isfinite(loss) else "loss"
            rows = self._train_loop_arguments["batcher"].describe_batch()
            raise RunError(
                f"step {step}: the {name} is not finite (rows {rows}); the weights are unchanged. Lower "
                f"trainer.learning_rate, check these rows, or set pipeline.max_nonfinite_steps: {len(skipped) + 2}"
            )

    @property
    def _step(self) -> int:
        """The current step, counted from 1."""
        return current_step(self.history)

    def _accumulate_task_row_gradients(
        self, shard: TokenSequences, dummy_batch: TokenSequences, loss_denominator: int
    ) -> torch.Tensor:
        """Adds the gradients of this process's task rows, in micro-batches. Returns their part of the step's mean loss.

        If memory runs out, the step restarts with smaller micro-batches; raises MachineError if they cannot be smaller.
        `dummy_batch` is processed with weight 0 while another process still has micro-batches.
        """
        rng, lockstep = rng_state(), self.process_group.lockstep
        if self.micro_batches.size is None and (len(shard) or lockstep):
            rows = shard if len(shard) else dummy_batch
            backward = partial(self._backward_micro_batch, loss_denominator=loss_denominator)
            self.micro_batches.calibrate(rows, self.model.model, self.optimizer, backward)
            self._restart_step(rng)

        def accumulate() -> torch.Tensor:
            loss = torch.zeros((), device=self.device)
            micro_batches = self.micro_batches.split(shard) if len(shard) else ()
            batches = self.process_group.lockstep_batches(micro_batches, dummy_batch)
            for (batch, is_real), is_last in mark_last(batches):
                with self.reduction.last_backward_pass(is_last):
                    loss += self._backward_micro_batch(batch, loss_denominator, weight=float(is_real))
            return loss

        def use_smaller() -> bool:
            if lockstep or not self.micro_batches.halve(shard):
                return False
            self._restart_step(rng)
            return True

        rows = TokenSequences.concatenate(shard, dummy_batch)
        return retry_smaller(accumulate, use_smaller, lambda failure: training_memory_error(failure, rows, lockstep))

    def _restart_step(self, rng: Mapping[str, torch.Tensor]) -> None:
        """Discards the gradients of the current step and restores the random number generators."""
        self.distributed.zero_grad(self.optimizer)
        self.reduction.restart()
        for strategy in self.strategies:
            strategy.reset_step()
        set_rng_state(rng)
        if self.__dict__.pop("graphs", None) is not None:
            release_cached_memory()  # that of the graphs may be what is missing

    def _backward_micro_batch(self, batch: TokenSequences, loss_denominator: int, weight: float = 1.0) -> torch.Tensor:
        """Adds the gradients of one micro-batch. Returns its part of the step's mean loss.

        Both are multiplied by `weight`, which is 0 for a dummy batch.
        """
        needs_logits = any(strategy.has_loss_on_task_rows for strategy in self.strategies)
        if self.graphs is not None and not needs_logits and self.micro_batches.size is not None:
            graph_loss = self.graphs.backward(batch, weight / loss_denominator)
            if graph_loss is not None:
                return graph_loss
        with autocast(self.device):
            losses: list[torch.Tensor] = []
            if needs_logits:
                logits, targets = supervised_logits(self.model.model, batch)
                task_loss = cross_entropy(logits, targets).sum()
                losses = [
                    strategy.loss_on_task_rows(batch, logits, loss_denominator, weight)
                    for strategy in self.strategies
                    if strategy.has_loss_on_task_rows
                ]
            else:
                task_loss = token_losses(self.model.model, batch).sum()
            loss = weight * (task_loss / loss_denominator)
        self.distributed.backward(self.loss_scaler.scale(sum(losses, loss)), self.dist_model)
        return loss.detach()

    def _accumulate_strategy_gradients(self, loss_denominator: int) -> list[torch.Tensor]:
        """Adds the gradients of the strategies. Returns copies of the gradients of the losses on the tasks' rows."""
        weights = self.weights
        if not self.strategies:
            self.loss_scaler.unscale_(weights)
            return []
        task_row_gradients = add_own_row_gradients(
            self.strategies,
            weights,
            loss_denominator,
            lambda loss: self.distributed.backward(self.loss_scaler.scale(loss), self.dist_model),
            self.history,
            self.process_group,
        )
        self.loss_scaler.unscale_(weights, task_row_gradients)
        for strategy in self.strategies:
            strategy.add_gradients()
        self._strategy_grad_norm = DeferredScalar(added_gradient_norm(weights, task_row_gradients))
        return task_row_gradients

    # --- evaluation ---

    def evaluation(
        self, dataset: LudwigTokenDataset, dataset_name: str, metrics_log: Any, batch_size: int, progress_tracker: Any
    ) -> Any:
        """Computes the loss of a split. For the training set it is the mean of the steps since the last evaluation."""
        if dataset_name == "train":
            loss = loss_since_last_evaluation(self.history)
        else:
            self.dist_model.eval()
            with autocast(self.device):
                losses = validation_losses(self.model.model, dataset.data, self.process_group)
            self.dist_model.train()
            loss = losses["loss"]
            self.history["validation_loss"].append({"step": progress_tracker.steps, **losses})
        # Ludwig writes these examples to a file after each evaluation. It would decode every token of the split.
        progress_tracker.llm_eval_examples = {"inputs": [], "targets": [], "outputs": []}
        results = {name: {"loss": loss} for name in [*self.model.output_features, "combined"]}
        return append_metrics(self.model, dataset_name, results, metrics_log, progress_tracker)

    def _has_nan_or_inf_weights(self, model: torch.nn.Module) -> bool:
        """Returns whether a trained weight or a buffer is not finite, in any process. Ludwig reads them one by one."""
        trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
        is_finite = all_finite([*trained, *model.buffers()])
        (num_processes,) = self.process_group.all_reduce_scalars([float(not is_finite)])
        return num_processes > 0

    # --- checkpoints, resume, interrupt ---

    def create_checkpoint_handle(self) -> SafetensorsCheckpoint:
        masters = getattr(self.optimizer, "masters", None)  # of an `OffloadedOptimizer`
        parts = (*self.strategies, self.loss_scaler, masters, self.step_callback)
        stateful: list[Any] = [part for part in parts if part is not None]
        self._checkpoint = SafetensorsCheckpoint(
            self.distributed, self.model, self.optimizer, self.scheduler, history=self.history, stateful=stateful
        )
        return self._checkpoint

    def _create_or_resume_progress_tracker(
        self, tracker_path: str, folder: str, checkpoint: Any, output_features: Any
    ) -> Any:
        """Resumes from the latest valid checkpoint. Raises RunError if all are corrupt; Ludwig would start over."""
        tracker = None
        if self.resume:
            try:
                tracker = self._checkpoint.resume(Path(folder))
            except CorruptCheckpointError as error:
                raise RunError(f"{error}; remove {Path(folder).parents[1]} to train from the start") from None
        if tracker is None:
            # Ludwig is to create a new tracker. With `resume` it would look for its own progress file first.
            resume, self.resume = self.resume, False
            tracker = super()._create_or_resume_progress_tracker(tracker_path, folder, checkpoint, output_features)
            self.resume = resume
        else:
            restore_metric_logs(tracker, output_features)
        self._checkpoint.tracker = tracker
        return tracker

    def _train_loop(self, *arguments: Any) -> tuple[bool, bool]:
        """Trains to the end of the epoch, and evaluates after the last step: Ludwig does so only at full intervals."""
        self._train_loop_arguments = loop = inspect.signature(super()._train_loop).bind(*arguments).arguments
        tracker, batcher = loop["progress_tracker"], loop["batcher"]
        self._checkpoint.scheduler = self.scheduler  # Ludwig has built it after the checkpoint handle
        self._restore_scheduler_and_rng()
        if "stopped_by_retention" in self.history or 0 < loop["early_stopping_steps"] <= tracker.last_improvement_steps:
            return True, False  # interrupted between the decision to stop and the end of training
        tracker.epoch, done = divmod(tracker.steps, batcher.steps_per_epoch)
        batcher.set_epoch(tracker.epoch, tracker.batch_size)
        batcher.seek(done)
        should_stop, has_nonfinite = super()._train_loop(*arguments)
        is_last = not (should_stop or has_nonfinite) and tracker.steps == self.total_steps
        if is_last and tracker.steps % loop["final_steps_per_checkpoint"]:
            # The last weights may be the best.
            parameters = inspect.signature(self._eval_and_checkpoint).parameters
            accepted = {name: value for name, value in loop.items() if name in parameters}
            should_stop, has_nonfinite = self._eval_and_checkpoint(loss=None, all_losses={}, **accepted)
        return should_stop, has_nonfinite

    def _restore_scheduler_and_rng(self) -> None:
        """Restores the parts of a checkpoint that Ludwig has overwritten since it was loaded."""
        state, self._checkpoint.deferred_state = self._checkpoint.deferred_state, None
        if state is None:
            return
        self.scheduler.load_state_dict(state["scheduler"])
        set_rng_state(state["rng"])

    def callback(self, fn: Any, coordinator_only: bool = True) -> None:
        """Calls the callbacks in every process. They run collective operations and may end the training."""
        super().callback(fn, coordinator_only=False)
