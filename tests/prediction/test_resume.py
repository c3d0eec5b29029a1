"""The journal of an output: interrupted anywhere, the same call goes on; anything else is refused."""

import io
import json
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from pipelines.console.reporter import ConsoleReporter
from pipelines.data.readers import read_rows
from pipelines.errors import MachineError, RunError
from pipelines.prediction.predict import PredictedBatch
from pipelines.prediction.resume import Journal, write_predictions

IDENTITY = {"files": ["a.jsonl"], "rows": "1", "options": {"task": None}, "model": "2", "config": "3", "version": "4"}


class Rows:
    """Rows that need no model, completed two at a time; stops with an error after `limit` batches."""

    input_paths = ()

    def __init__(self, num_rows=5, limit=99, **identity):
        self.num_rows, self.limit, self.changes = num_rows, limit, identity
        self.checked, self.completed = 0, []

    def identity(self):
        return {**IDENTITY, **self.changes}

    def check(self, reporter, max_columns):
        self.checked += 1
        return self.num_rows

    def batches(self, num_rows, reporter, start, batch_size, one_bar):
        for number, first in enumerate(range(start, num_rows, 2)):
            if number == self.limit:
                raise KeyboardInterrupt
            rows = list(range(first, min(first + 2, num_rows)))
            self.completed += rows
            yield PredictedBatch([{"q": row, "prediction": f"é{row}"} for row in rows], 1)


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(rows, output="out.jsonl", restart=False):
    log = io.StringIO()
    write_predictions(rows, Path(output), ConsoleReporter(Console(file=log, width=200)), restart)
    return log.getvalue()


def interrupted(limit, output="out.jsonl", num_rows=5):
    with pytest.raises(KeyboardInterrupt):
        write(Rows(num_rows, limit), output)


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet", "out.json.gz", "new/out.jsonl"])
@pytest.mark.parametrize("limit", [1, 2])
def test_an_interrupted_output_goes_on(output, limit):
    write(Rows(), "whole" + "".join(Path(output).suffixes))
    interrupted(limit, output)
    assert not Path(output).exists() and len(Path(f"{output}.partial").read_text().splitlines()) == 2 * limit
    rest = Rows()
    log = write(rest, output)
    assert rest.checked == 0 and rest.completed == list(range(2 * limit, 5))
    assert "3 of 5 predictions cut inside the reasoning" in log
    assert Path(output).read_bytes() == Path("whole" + "".join(Path(output).suffixes)).read_bytes()
    assert [path.name for path in Path(output).parent.iterdir() if "partial" in path.name] == []


def test_an_interrupted_first_batch_leaves_nothing():
    Path("out.jsonl").write_text("old")
    interrupted(0)
    assert [path.name for path in Path().iterdir()] == ["out.jsonl"] and Path("out.jsonl").read_text() == "old"


def test_rows_after_the_last_complete_batch_are_cut_off():
    interrupted(2)
    with Path("out.jsonl.partial").open("a") as file:
        file.write('{"q": 4, "predic')
    rest = Rows()
    write(rest)
    assert rest.completed == [4] and [row["q"] for row in read_rows(Path("out.jsonl"))] == [0, 1, 2, 3, 4]


def test_a_complete_journal_is_only_converted(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "out.csv.converted")

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.prediction.resume.convert", full)
        with pytest.raises(MachineError, match="free some space, then run the same command again"):
            write(Rows(), "out.csv")
    rest = Rows()
    write(rest, "out.csv")
    assert rest.completed == [] and [row["q"] for row in read_rows(Path("out.csv"))] == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"files": ["b.jsonl"]},
            r"has 2 predictions of other files \(a.jsonl\); add --restart to begin again, or name",
        ),
        ({"rows": "9"}, "of a.jsonl as it was before it was changed"),
        ({"options": {"task": "odd"}}, "with other options"),
        ({"model": "9"}, "of another model: the run has been trained again"),
        ({"config": "9"}, "the config of the run has been changed"),
        ({"version": "9"}, r"of another version of alfine \(4\)"),
    ],
)
def test_a_journal_of_something_else_is_refused_and_kept(changes, message):
    interrupted(1)
    before = Path("out.jsonl.partial").read_bytes()
    with pytest.raises(RunError, match=message):
        write(Rows(**changes))
    assert Path("out.jsonl.partial").read_bytes() == before
    write(Rows(**changes), restart=True)
    assert len(read_rows(Path("out.jsonl"))) == 5


def truncate(path):
    path.write_bytes(path.read_bytes()[:-3])


def edit(path):
    path.write_bytes(path.read_bytes().replace(b"0", b"7", 1))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("out.jsonl.partial", edit, "out.jsonl.partial has been changed since it was written; add --restart"),
        ("out.jsonl.partial", truncate, "has been changed since it was written"),
        ("out.jsonl.partial.json", truncate, "is damaged, or of another version of alfine; add --restart"),
        ("out.jsonl.partial.json", lambda path: path.write_text("[1]"), "is damaged"),
        ("out.jsonl.partial.json", Path.unlink, "exists, but not its state out.jsonl.partial.json; remove it, or add"),
    ],
)
def test_damaged_journals_are_refused(file, damage, message):
    interrupted(1)
    damage(Path(file))
    with pytest.raises(RunError, match=message):
        write(Rows())
    assert len(write(Rows(), restart=True)) and len(read_rows(Path("out.jsonl"))) == 5


def test_a_state_without_rows_means_nothing():
    interrupted(1)
    Path("out.jsonl.partial").unlink()
    rows = Rows()
    write(rows)
    assert rows.checked == 1 and rows.completed == [0, 1, 2, 3, 4]


def test_two_processes_do_not_write_the_same_output():
    with (
        FileLock("out.jsonl.partial.lock"),
        pytest.raises(RunError, match="another alfine predict that writes the same"),
    ):
        write(Rows())


def test_a_batch_that_is_not_on_the_disk_is_not_counted(monkeypatch):
    journal = Journal(Path("out.jsonl"))
    journal.start(IDENTITY, 4, 2)
    journal.append([{"q": 0}], 0)
    size = journal.state.size

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pipelines.prediction.resume.write_json", full)
    with pytest.raises(OSError):
        journal.append([{"q": 1}], 0)
    state = Journal(Path("out.jsonl")).resume(IDENTITY)
    assert (state.done, Path("out.jsonl.partial").stat().st_size) == (1, size)


def test_a_full_disk_is_named_and_resumed(monkeypatch):
    interrupted(1)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda number: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(MachineError, match="no space left on device .* run the same command again to resume"):
            write(Rows())
    rest = Rows()
    write(rest)
    assert rest.completed == [2, 3, 4]


def test_a_link_keeps_pointing_to_its_file(tmp_path):
    Path("elsewhere").mkdir()
    Path("out.jsonl").symlink_to("elsewhere/real.jsonl")
    write(Rows())
    assert Path("out.jsonl").is_symlink() and len(Path("elsewhere/real.jsonl").read_text().splitlines()) == 5
    assert json.loads(Path("out.jsonl").read_text().splitlines()[0]) == {"q": 0, "prediction": "é0"}
