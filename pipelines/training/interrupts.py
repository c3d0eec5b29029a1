"""Ctrl-C and SIGTERM during a training."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

from ludwig.trainers.trainer_llm import FineTuneTrainer as LudwigFineTuneTrainer


class InterruptibleTrainer(LudwigFineTuneTrainer):
    """Ludwig's trainer, which stops after the current step on a signal; `stop_requested` tells it to."""

    stop_requested = False
    _train_loop_arguments: dict[str, Any]
    """The arguments of Ludwig's `_train_loop`, by name."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains. SIGTERM, which cluster schedulers send, acts as Ctrl-C does."""
        if threading.current_thread() is not threading.main_thread():
            return super().train(*args, **kwargs)
        handler = signal.signal(signal.SIGTERM, self.set_steps_to_1_or_quit)
        try:
            return super().train(*args, **kwargs)
        finally:
            signal.signal(signal.SIGTERM, handler)

    def set_steps_to_1_or_quit(self, signum: int, frame: Any) -> None:
        """Ludwig's handler of Ctrl-C. The first signal stops training after the current step, the second at once.

        Ludwig would end the loop as if training were finished.
        """
        if self.stop_requested:
            raise KeyboardInterrupt
        self.stop_requested = True
        print("\nstopping after this step; press Ctrl-C again to stop now", file=sys.stderr)

    def stop_after(self, step: int) -> None:
        """Ends the training after `step`, as if it were the last step: Ludwig evaluates the validation set there."""
        self.total_steps = step

    def stop_if_requested(self) -> None:
        """Saves a checkpoint and raises KeyboardInterrupt after a signal. Called between two steps."""
        if self.stop_requested:
            loop = self._train_loop_arguments
            self.save_checkpoint(loop["progress_tracker"], loop["save_path"], loop["checkpoint_manager"])
            raise KeyboardInterrupt
