"""The engine: greedy answers as `complete` gives them, whatever is decoded beside them."""

import asyncio
import threading
from dataclasses import replace

import pytest
import torch

from pipelines.errors import DataError, RunError, UnavailableError
from pipelines.evaluation.completions import complete
from pipelines.inference import engine as engine_module
from pipelines.inference.engine import GenerationEngine
from pipelines.inference.requests import GenerationRequest
from tests.inference.tiny_run import load_models, make_run

PROMPTS = [[20 + (7 * index + 3 * position) % 200 for position in range(3 + 11 * index % 40)] for index in range(12)]
LIMITS = [3 + 17 * index % 60 for index in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_models(make_run(tmp_path_factory.mktemp("lora")))


@pytest.fixture
def engine(models):
    with GenerationEngine(models, max_slots=8) as running:
        yield running


def expected(models, name):
    with models.active(name) as loaded:
        return complete(loaded, PROMPTS, {"do_sample": False}, LIMITS)


def submit_all(engine, name, **settings):
    return [
        engine.submit(GenerationRequest(name, prompt, limit, **settings))
        for prompt, limit in zip(PROMPTS, LIMITS, strict=True)
    ]


def test_answers_of_both_models_at_once_are_those_of_complete(models, engine):
    streams = {name: submit_all(engine, name) for name in ("base", "tuned")}
    found = {name: [stream.result() for stream in streams[name]] for name in streams}
    assert models.shares_weights
    for name in streams:
        assert found[name] == expected(models, name)
    assert engine._uses_slots == {"base": True, "tuned": True}
    assert [one.tokens for one in found["base"]] != [one.tokens for one in found["tuned"]]
    assert engine.num_active == engine.num_waiting == 0
    assert engine.statistics.ended.total() == 24
    assert engine.statistics.num_generated_tokens == sum(len(one.tokens) for name in found for one in found[name])


@pytest.mark.parametrize("kind", ["sentencepiece", "qwen3_like", "r1_like", "adds_bos", "no_template"])
def test_full_weights_and_every_kind_of_tokenizer(kind, tmp_path):
    models = load_models(make_run(tmp_path, kind, adapter=False))
    assert not models.shares_weights
    prompts = [[token % 90 + 5 for token in prompt] for prompt in PROMPTS]
    with GenerationEngine(models, max_slots=5) as engine:
        for name in ("tuned", "base"):
            with models.active(name) as loaded:
                plain = complete(loaded, prompts, {"do_sample": False}, LIMITS)
            streams = [engine.submit(GenerationRequest(name, ids, n)) for ids, n in zip(prompts, LIMITS, strict=True)]
            parts = [list(stream) for stream in streams]
            assert [stream.completion for stream in streams] == plain
            for deltas, whole in zip(parts, plain, strict=True):
                assert [token for delta in deltas for token in delta.token_ids] == whole.tokens
                assert "".join(delta.text for delta in deltas) == whole.text
                assert [delta.finish_reason for delta in deltas][-1] == whole.finish_reason
                assert all(delta.finish_reason is None for delta in deltas[:-1])


def test_models_without_slots_are_decoded_by_generate(models, monkeypatch):
    monkeypatch.setattr(engine_module, "supports_slots", lambda model: False)
    with GenerationEngine(models, max_slots=8) as engine:
        streams = {name: submit_all(engine, name) for name in ("base", "tuned")}
        for name, own in streams.items():
            assert [stream.result() for stream in own] == expected(models, name)
        cancelled = engine.submit(GenerationRequest("base", PROMPTS[0], 400))
        next(cancelled)
        cancelled.cancel()
        assert list(cancelled)[-1].finish_reason == "cancelled"


def test_sampling_depends_on_the_seed_and_not_on_other_requests(models, engine):
    request = GenerationRequest("tuned", PROMPTS[3], 40, temperature=1.5, top_p=0.9, seed=5)
    alone = engine.submit(request).result().tokens
    others = submit_all(engine, "tuned", temperature=1.0)
    beside = [engine.submit(request) for _ in range(2)]
    assert [stream.result().tokens for stream in beside] == [alone, alone]
    assert engine.submit(replace(request, seed=6)).result().tokens != alone
    unseeded = [engine.submit(replace(request, seed=None)).result().tokens for _ in range(2)]
    assert unseeded[0] != unseeded[1]
    for stream in others:
        stream.result()


def test_log_probabilities_are_those_of_an_independent_pass(models, engine):
    for name in ("base", "tuned"):
        stream = engine.submit(GenerationRequest(name, PROMPTS[5], 30, temperature=1.2, seed=1, num_logprobs=4))
        tokens = stream.result().tokens
        with models.active(name) as loaded, torch.inference_mode():
            ids = torch.tensor([[*PROMPTS[5], *tokens]])
            logprobs = loaded.model(ids).logits[0, len(PROMPTS[5]) - 1 : -1].log_softmax(-1)
        assert [one.token for one in stream.logprobs] == tokens
        for one, row in zip(stream.logprobs, logprobs, strict=True):
            assert one.logprob == pytest.approx(float(row[one.token]), abs=1e-4)
            top = row.topk(4)
            assert [value for _, value in one.top] == pytest.approx(top.values.tolist(), abs=1e-4)
            assert dict(one.top) == pytest.approx({int(i): float(row[i]) for i in top.indices}, abs=1e-4)


def test_cancelled_requests_leave_the_others_alone(models, engine):
    long = [engine.submit(GenerationRequest("base", PROMPTS[index], 400)) for index in range(8)]
    waiting = engine.submit(GenerationRequest("base", PROMPTS[0], 5))
    dropped = engine.submit(GenerationRequest("base", PROMPTS[0], 5))
    dropped.cancel()
    next(long[0])
    for stream in long[::2]:
        stream.cancel()
    assert [list(stream)[-1].finish_reason for stream in long[::2]] == ["cancelled"] * 4
    assert list(dropped)[-1].finish_reason == "cancelled"
    with models.active("base") as loaded:
        plain = complete(loaded, [PROMPTS[0], *PROMPTS[1:8:2]], {}, [5] + [400] * 4)
    assert [stream.result() for stream in (waiting, *long[1::2])] == plain
    assert engine.statistics.ended["cancelled"] == 5


def test_prompts_and_the_context(models):
    with GenerationEngine(models, max_context=50) as engine:
        assert engine.submit(GenerationRequest("base", [30] * 45, 400)).result().num_generated_tokens <= 5
        with pytest.raises(DataError, match="50 tokens, which leaves no room for a completion in the context of 50"):
            engine.submit(GenerationRequest("base", [30] * 50, 1))
        with pytest.raises(DataError, match="no tokens"):
            engine.submit(GenerationRequest("base", [], 1))
        with pytest.raises(DataError, match="max_new_tokens is 0"):
            engine.submit(GenerationRequest("base", [1], 0))
        with pytest.raises(RunError, match="no model 'other'"):
            engine.submit(GenerationRequest("other", [1], 1))
    with pytest.raises(UnavailableError, match="closed"):
        engine.submit(GenerationRequest("base", [30], 1))


def test_memory_limits_the_slots_and_serves_everyone(models):
    with GenerationEngine(models, max_slots=8) as engine:
        engine._cache_tokens = 600  # two slots of the shortest pool
        streams = submit_all(engine, "base")
        long = engine.submit(GenerationRequest("base", [30] * 300, 100))
        assert [stream.result() for stream in streams] == expected(models, "base")
        assert long.result().num_generated_tokens


def test_a_failure_ends_its_requests_and_no_others(models, monkeypatch):
    with GenerationEngine(models) as engine:
        engine.submit(GenerationRequest("base", [30], 1)).result()
        monkeypatch.setattr(
            engine_module.RequestPool, "step", lambda self: (_ for _ in ()).throw(RuntimeError("broken\nmore"))
        )
        with pytest.raises(RunError, match="the model failed: RuntimeError: broken$"):
            engine.submit(GenerationRequest("tuned", PROMPTS[4], 5)).result()
        monkeypatch.undo()
        assert engine.submit(GenerationRequest("tuned", PROMPTS[4], LIMITS[4])).result() == expected(models, "tuned")[4]


def test_streams_are_read_in_asyncio_and_slow_readers_get_larger_parts(models, engine):
    async def read(stream, pause):
        deltas = []
        async for delta in stream:
            deltas.append(delta)
            await asyncio.sleep(pause)
        return deltas

    async def main():
        return await asyncio.gather(
            *(read(stream, 0.05 * (index % 2)) for index, stream in enumerate(submit_all(engine, "base")))
        )

    plain = expected(models, "base")
    for deltas, whole in zip(asyncio.run(main()), plain, strict=True):
        assert "".join(delta.text for delta in deltas) == whole.text


def test_closing_fails_what_runs(models):
    engine = GenerationEngine(models)
    stream = engine.submit(GenerationRequest("base", PROMPTS[0], 480))
    next(stream)
    thread = threading.Thread(target=engine.close)
    thread.start()
    try:
        for _ in stream:
            pass
    except UnavailableError as error:
        assert "closed before the answer was complete" in str(error)
    thread.join()
