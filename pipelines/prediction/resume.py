"""The journal of an output: the rows that are complete so far, with which an interrupted prediction is resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from pipelines.console.plain_text import count
from pipelines.console.reporter import ConsoleReporter
from pipelines.errors import RunError
from pipelines.prediction.outputs import check_output, convert, is_journal_format, max_num_columns
from pipelines.prediction.predict import COLUMNS, OUTPUT_BATCH_SIZE, RowPredictor, warn_of_cuts
from pipelines.storage.files import os_errors_as_machine_error, write_json
from pipelines.storage.strict_json import dump

FORMAT = 1
"""Version of the journal and its state."""
_CHUNK_BYTES = 1 << 20
RESTART = "add --restart to begin again"


class JournalState(BaseModel):
    """The content of `OUTPUT.partial.json`.

    Attributes:
        identity: what the predictions depend on, see `RowPredictor.identity`.
        num_rows: the rows of the input.
        batch_size: the rows that are completed together.
        done: the rows in the journal.
        size, sha256: of the bytes of these rows. What follows them was not complete when the process ended.
        num_cut: how many of them were cut inside their reasoning.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    format: int = FORMAT
    identity: dict[str, Any]
    num_rows: int
    batch_size: int
    done: int = 0
    size: int = 0
    sha256: str = ""
    num_cut: int = 0


class Journal:
    """The files `OUTPUT.partial`, JSON Lines, and `OUTPUT.partial.json`, its state after the last complete batch.

    A batch is flushed to disk before the state names it: after a crash of any kind the state is that of rows which are
    on the disk.
    """

    def __init__(self, output: Path) -> None:
        self.rows_path = output.with_name(f"{output.name}.partial")
        self.state_path = output.with_name(f"{output.name}.partial.json")
        self.lock_path = output.with_name(f"{output.name}.partial.lock")
        self.state: JournalState | None = None
        self._sha256 = hashlib.sha256()

    @property
    def files(self) -> list[Path]:
        return [self.rows_path, self.state_path, self.lock_path]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Raises RunError if another process writes the same output."""
        self.lock_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.lock_path, timeout=0):
                try:
                    yield
                finally:
                    self.lock_path.unlink(missing_ok=True)
        except Timeout:
            raise RunError(f"{self.lock_path} is held by another alfine predict that writes the same file") from None

    def resume(self, identity: Mapping[str, Any]) -> JournalState | None:
        """The state of an interrupted prediction of the same identity; None if there is none.

        Raises RunError for files that are damaged, or that an input, a model or options of another kind have left.
        """
        if not self.rows_path.exists():
            return None  # a state without rows is left if the process ended between two renames
        if not self.state_path.exists():
            raise RunError(
                f"{self.rows_path} exists, but not its state {self.state_path.name}; remove it, or {RESTART}"
            )
        try:
            state = JournalState.model_validate_json(self.state_path.read_bytes())
        except ValidationError:
            raise RunError(f"{self.state_path} is damaged, or of another version of alfine; {RESTART}") from None
        if state.format != FORMAT:
            raise RunError(f"{self.state_path} is of another version of alfine; {RESTART}")
        # As JSON, since tuples have become lists.
        expected = json.loads(json.dumps(identity))
        if changed := [key for key in expected if expected[key] != state.identity.get(key)]:
            began = f"{self.rows_path} has {count(state.done, 'prediction')}"
            raise RunError(f"{began} {_describe(changed[0], state.identity)}; {RESTART}, or name another --output")
        self._truncate(state)
        self.state = state
        return state

    def _truncate(self, state: JournalState) -> None:
        """Cuts the rows after the last complete batch off. Raises RunError if those before it have been changed."""
        remaining = state.size
        with self.rows_path.open("r+b") as file:
            while remaining and (chunk := file.read(min(remaining, _CHUNK_BYTES))):
                self._sha256.update(chunk)
                remaining -= len(chunk)
            if remaining or (state.size and self._sha256.hexdigest() != state.sha256):
                raise RunError(f"{self.rows_path} has been changed since it was written; {RESTART}")
            file.truncate(state.size)

    def start(self, identity: Mapping[str, Any], num_rows: int, batch_size: int) -> JournalState:
        """Begins an empty journal."""
        self._sha256 = hashlib.sha256()
        self.state = JournalState(identity=dict(identity), num_rows=num_rows, batch_size=batch_size)
        self.rows_path.unlink(missing_ok=True)
        self._write_state()
        self.rows_path.touch()
        return self.state

    def append(self, rows: list[dict[str, Any]], num_cut: int) -> None:
        """Adds a batch of rows."""
        assert self.state is not None
        lines = "".join(dump(row) + "\n" for row in rows).encode()
        with self.rows_path.open("r+b") as file:
            file.seek(self.state.size)
            file.write(lines)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._sha256.update(lines)
        self.state.done += len(rows)
        self.state.size += len(lines)
        self.state.sha256 = self._sha256.hexdigest()
        self.state.num_cut += num_cut
        self._write_state()

    def _write_state(self) -> None:
        assert self.state is not None
        write_json(self.state_path, self.state.model_dump())

    def remove(self) -> None:
        """Removes the rows first: a state without rows means nothing."""
        self.rows_path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)


def _describe(key: str, identity: Mapping[str, Any]) -> str:
    """How a prediction differs from that of the journal, by the first key of its identity that differs."""
    files = ", ".join(map(str, identity.get("files", ())))
    return {
        "files": f"of other files ({files})",
        "rows": f"of {files} as it was before it was changed",
        "options": "with other options (--task, --raw, --base)",
        "model": "of another model: the run has been trained again",
        "config": "with other settings: the config of the run has been changed",
        "version": f"of another version of alfine ({identity.get('version')})",
    }[key]


def write_predictions(predictor: RowPredictor, output: Path, reporter: ConsoleReporter, restart: bool = False) -> None:
    """Writes the rows of `predictor` with their predictions to `output`, in the format of its name.

    Until all rows are complete they are in the journal, from which the same call resumes if it is interrupted; `output`
    then stays as it was. restart: whether a journal is discarded.

    Raises RunError for an output that must not be written and for a journal of something else, and the errors of
    `RowPredictor.check` and `batches`.
    """
    target = output.resolve() if output.is_symlink() else output
    journal = Journal(target)
    check_output(output, predictor.input_paths, journal.files)
    with os_errors_as_machine_error(target.parent):
        # Before the lock, which may create the folder. The rows of a journal have been checked before.
        max_columns = max_num_columns(target)
        checked = None if journal.rows_path.exists() and not restart else predictor.check(reporter, max_columns)
        with journal.locked():
            identity = predictor.identity()
            state = None if restart else journal.resume(identity)
            if state is None:
                num_rows = predictor.check(reporter, max_columns) if checked is None else checked
                state = journal.start(identity, num_rows, OUTPUT_BATCH_SIZE)
            else:
                reporter.note(
                    f"{journal.rows_path} has {state.done:,} of {state.num_rows:,} predictions; resumed there"
                )
            try:
                _complete_rows(predictor, journal, state, reporter)
                _finish(journal, target, reporter)
            except BaseException:
                if state.done:
                    rows = f"{state.done:,} of {count(state.num_rows, 'prediction')} as JSON Lines"
                    reporter.warn(f"{journal.rows_path} keeps {rows}; run the same command again to resume")
                else:
                    journal.remove()
                raise
    warn_of_cuts(state.num_cut, state.num_rows, reporter)


def _complete_rows(predictor: RowPredictor, journal: Journal, state: JournalState, reporter: ConsoleReporter) -> None:
    batches = predictor.batches(state.num_rows, reporter, state.done, state.batch_size, one_bar=True)
    with contextlib.closing(batches):
        for batch in batches:
            journal.append(batch.rows, batch.num_cut)


def _finish(journal: Journal, output: Path, reporter: ConsoleReporter) -> None:
    if is_journal_format(output):
        journal.rows_path.replace(output)
    else:
        for note in convert(journal.rows_path, output, COLUMNS):
            reporter.note(f"{output}: {note}")
    journal.remove()
