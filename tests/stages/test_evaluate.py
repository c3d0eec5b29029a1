"""The evaluator of a session is created when it is first needed, once, and released at the end."""

import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.stages import evaluate
from tests.jobs import QUIET


class FakeEvaluator:
    def __init__(self, job, starting_model_folder, tuned):
        self.tuned = tuned
        self.model = self  # models are in reference cycles

    def close(self):
        closed.append(self.tuned)


closed = []


@pytest.mark.parametrize(("which_model", "tuned"), [("base", None), ("tuned", Path("run/model"))])
def test_a_session_loads_its_model_once(monkeypatch, which_model, tuned):
    monkeypatch.setattr(evaluate, "LocalEvaluator", FakeEvaluator)
    monkeypatch.setattr(evaluate, "uses_ray", lambda job: False)
    run = SimpleNamespace(path=lambda name: Path("run") / name)
    context = SimpleNamespace(job=None, run=run, starting_model_folder=Path("base"), reporter=QUIET)
    with evaluate.EvaluatorSession(context, which_model) as session:
        assert session._evaluator is None
        assert session.evaluator.tuned == tuned and session.evaluator is session.evaluator
        reference = weakref.ref(session.evaluator)
    assert reference() is None and closed.pop() == tuned
