"""A server whose engine is elsewhere: replicas in this process, without Ray."""

import asyncio
import json
import threading
import time

import pytest

from pipelines.errors import AlfineError, UnavailableError
from pipelines.inference.engine import GenerationEngine
from pipelines.inference.requests import GenerationRequest
from pipelines.inference.run_models import RunFormat
from pipelines.prediction.models import tuned_job
from pipelines.serving import remote_engine
from pipelines.serving.ray_replicas import Replica
from pipelines.serving.remote_engine import RemoteEngine
from tests.inference.tiny_run import load_models, make_run
from tests.serving.api import CHAT, PLAIN, chat, client_of, events


class InProcessAnswer:
    """An answer of a replica in this process, whose task `cancel` ends as Ray ends it."""

    def __init__(self, replica, request):
        self.parts, self.task = replica.generate(request), None

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.task = asyncio.ensure_future(anext(self.parts))
        return await asyncio.shield(self.task)  # as with Ray, only `cancel` reaches the replica

    def cancel(self):
        self.task.cancel()


class Dying:
    """Parts that end with an exception of the transport."""

    def __init__(self, replica, request):
        self.parts, self.left = replica.generate(request), 2

    async def __aiter__(self):
        async for part in self.parts:
            yield part
            self.left -= 1
            if not self.left:
                raise ConnectionResetError("the replica has gone")

    def cancel(self):
        raise ConnectionResetError("the replica has gone")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def run_format(run):
    return RunFormat.load(run, tuned_job(run))


@pytest.fixture(scope="module")
def replica(run):
    one = object.__new__(Replica)  # its constructor changes the working directory
    with GenerationEngine(load_models(run), max_slots=4) as one.engine:
        yield one


class Silent:
    """An answer that waits for a replica."""

    def __init__(self, replica, request):
        pass

    async def __aiter__(self):
        await asyncio.Event().wait()
        yield

    def cancel(self):
        pass


def remote(replica, kind=InProcessAnswer, find_problem=lambda: None):
    def as_error(error):
        return UnavailableError(str(error))

    return RemoteEngine(lambda request: kind(replica, request), replica.context_length(), 4, as_error, find_problem)


def is_idle(replica):
    return not replica.engine.num_active and not replica.engine.num_waiting


def until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_answers_are_those_of_the_engine_itself(replica, run_format):
    async def answers(models, engine):
        async with client_of(models, engine) as client:
            bodies = [chat(f"tea {number}", model=name) for number in range(3) for name in ("base", "tuned")]
            bodies += [chat(temperature=2, seed=3, n=2), chat(logprobs=True, top_logprobs=2)]
            responses = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
            streamed = await client.post(PLAIN, json={"model": "tuned", "prompt": "the", "stream": True})
            results = [(await response.json())["choices"] for response in responses]
            logprobs = [one["logprob"] for one in results[-1][0].pop("logprobs")["content"]]
            assert [response.status for response in responses] == [200] * len(bodies)
            parts = events(await streamed.text())
            assert parts.pop() == "[DONE]"
            text = "".join(json.loads(part)["choices"][0]["text"] for part in parts)
            return results, text, logprobs

    with remote(replica) as engine:
        *remote_answers, logprobs = asyncio.run(answers(run_format, engine))
        *local_answers, local_logprobs = asyncio.run(answers(replica.engine.models, replica.engine))
        assert remote_answers == local_answers and logprobs == pytest.approx(local_logprobs, abs=1e-4)
        assert engine.num_active == engine.num_waiting == 0


def test_a_client_that_leaves_ends_its_answer_in_the_replica(replica, run_format):
    async def leave(engine):
        async with client_of(run_format, engine) as client:
            response = await client.post(CHAT, json=chat(max_tokens=450, n=4, temperature=3, seed=1, stream=True))
            await response.content.readany()
            assert not is_idle(replica) and engine.num_active > 0
            response.close()
            await asyncio.to_thread(until, lambda: is_idle(replica) and not engine.num_active)

    cancelled = replica.engine.statistics.ended["cancelled"]
    with remote(replica) as engine:
        asyncio.run(leave(engine))
    assert replica.engine.statistics.ended["cancelled"] > cancelled


def test_a_replica_that_dies_fails_its_requests_only(replica, run_format):
    async def ask(engine):
        async with client_of(run_format, engine) as client:
            whole = await client.post(CHAT, json=chat(max_tokens=450, temperature=3, seed=1))
            streamed = await client.post(CHAT, json=chat(max_tokens=450, temperature=3, seed=1, stream=True))
            return whole.status, await whole.json(), events(await streamed.text())[-1]

    with remote(replica, Dying) as engine:
        status, body, last = asyncio.run(ask(engine))
    assert status == 503 and body["error"]["message"] == "the replica has gone"
    assert '"message":"the replica has gone"' in last
    until(lambda: is_idle(replica))


def test_errors_of_the_replica_are_those_of_the_request(replica):
    with remote(replica) as engine:
        stream = engine.submit(GenerationRequest("tuned", [], 5))
        with pytest.raises(AlfineError, match="the prompt has no tokens"):
            stream.result()


@pytest.fixture
def fast_polls(monkeypatch):
    monkeypatch.setattr(remote_engine, "POLL_INTERVAL_S", 0.01)
    monkeypatch.setattr(remote_engine, "MAX_SILENCE_S", 5.0)


def test_without_replicas_requests_are_refused_until_one_is_back(replica, run_format, fast_polls):
    async def ask(engine):
        async with client_of(run_format, engine) as client:
            assert (await client.get("/ready")).status == 200
            waiting = asyncio.create_task(client.post(CHAT, json=chat(stream=True)))
            await asyncio.to_thread(until, lambda: engine.num_waiting)
            problems.append("no replica is running")
            answers = [await waiting, await client.post(CHAT, json=chat()), await client.get("/ready")]
            bodies = [await answer.text() for answer in answers]
            problems.clear()
            await asyncio.to_thread(until, lambda: engine.problem is None)
            assert (await client.get("/ready")).status == 200
            return answers, bodies

    problems = []
    with remote(replica, Silent, lambda: problems[-1] if problems else None) as engine:
        (streamed, refused, ready), bodies = asyncio.run(ask(engine))
        assert engine.num_waiting == 0
    error = {"message": "no replica is running", "type": "server_error", "param": None, "code": "unavailable"}
    assert streamed.status == 200 and [json.loads(event)["error"] for event in events(bodies[0])] == [error]
    assert refused.status == 503 and refused.headers["Retry-After"] and json.loads(bodies[1])["error"] == error
    assert ready.status == 503
    assert json.loads(bodies[2]) == {"status": "unavailable", "reason": "no replica is running"}


def test_an_answer_that_is_cancelled_before_it_starts_ends(replica):
    started, streams = [], []

    def submit_and_cancel():
        """Both in one step of the thread's event loop."""
        streams.append(engine.submit(GenerationRequest("tuned", [5], 5)))
        streams[0].cancel()

    with remote(replica, lambda *_: started.append(1)) as engine:
        engine._loop.call_soon_threadsafe(submit_and_cancel)
        until(lambda: streams and not engine.num_waiting)
        assert [delta.finish_reason for delta in streams[0]] == ["cancelled"]
    assert not started


def test_an_answer_that_has_begun_goes_on_while_no_replica_is_seen(replica, fast_polls):
    problems = []
    with remote(replica, find_problem=lambda: problems[-1] if problems else None) as engine:
        stream = engine.submit(GenerationRequest("tuned", [5, 6], 200, temperature=3.0, seed=1))
        next(stream)
        problems.append("no replica is seen")
        until(lambda: engine.problem)
        assert stream.result().finish_reason in ("stop", "length")


def test_replicas_of_which_nothing_is_heard_are_a_problem(replica, fast_polls, monkeypatch):
    monkeypatch.setattr(remote_engine, "MAX_SILENCE_S", 0.2)

    def fail():
        raise ConnectionError("Ray has gone")

    released = threading.Event()
    with remote(replica, Silent, released.wait) as engine:
        until(lambda: engine.problem)
        assert engine.problem == "it is unknown whether replicas are running: Ray does not answer"
    released.set()
    with remote(replica, Silent, fail) as engine:
        until(lambda: engine.problem)
        with pytest.raises(UnavailableError, match="Ray has gone"):
            engine.submit(GenerationRequest("tuned", [5], 5))


def test_closing_ends_what_has_not_ended(replica):
    with remote(replica) as engine:
        stream = engine.submit(GenerationRequest("tuned", [5, 6], 450, temperature=3.0, seed=1))
        next(stream)
    with pytest.raises(UnavailableError, match="closed before the answer was complete"):
        stream.result()
    assert engine.problem == "the engine has been closed" and threading.active_count() < 10
    stream.cancel()
    with pytest.raises(UnavailableError, match="has been closed"):
        engine.submit(GenerationRequest("tuned", [5], 5))
    until(lambda: is_idle(replica))
