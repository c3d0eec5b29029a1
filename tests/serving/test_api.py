"""The API: answers as `complete` gives them, errors in OpenAI's format, limits, access."""

import asyncio
import contextlib
import json
import logging

import aiohttp
import pytest

from pipelines.evaluation.completions import complete
from pipelines.inference.requests import GenerationRequest
from tests.inference.tiny_run import load_models, make_run
from tests.serving.api import CHAT, PLAIN, chat, events, with_client


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return load_models(make_run(tmp_path_factory.mktemp("run"), pipeline={"system": "Be brief."}))


def completion_of(models, prompt, name="tuned", limit=None):
    with models.active(name) as loaded:
        return complete(loaded, [prompt.ids], models.job.generation, [limit or prompt.max_new_tokens])[0]


def posted(models, body, path=CHAT, status=200, headers=None, **settings):
    async def test(client, engine):
        response = await client.post(path, json=body, headers=headers)
        text = await response.text()
        assert response.status == status, text
        return json.loads(text) if response.content_type == "application/json" else text

    return with_client(models, test, **settings)


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_a_chat_answer_is_that_of_the_run(models, name):
    answer = posted(models, chat(model=name))
    prompt = models.prompts.from_messages([{"role": "user", "content": "the tea"}])
    assert "Be brief." in models.prompt_format.tokenizer.decode(prompt.ids)
    expected = completion_of(models, prompt, name)
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": expected.text, "refusal": None},
            "logprobs": None,
            "finish_reason": expected.finish_reason,
        }
    ]
    assert answer["usage"]["prompt_tokens"] == len(prompt.ids)
    assert answer["usage"]["completion_tokens"] == expected.num_generated_tokens
    assert (answer["object"], answer["model"]) == ("chat.completion", name)


def test_a_row_is_answered_in_the_template_of_its_task(models):
    answer = posted(models, {"model": "tuned", "task": "odd", "row": {"q": "is 3 odd", "more": [1]}})
    expected = completion_of(models, models.prompts.from_row("odd", {"q": "is 3 odd"}))
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert expected.num_generated_tokens <= 8


def test_messages_continue_the_conversation_of_a_task(models):
    """They have the system turn and the limit of the task."""
    first = {"role": "user", "content": "is 3 odd?"}
    turns = [first, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "and 4"}]
    of_row = posted(models, {"model": "tuned", "task": "odd", "row": {"q": "is 3 odd"}})
    of_messages = posted(models, {"model": "tuned", "task": "odd", "messages": [first]})
    assert of_messages["choices"] == of_row["choices"] and of_messages["usage"] == of_row["usage"]
    assert posted(models, {"model": "tuned", "task": "odd", "messages": turns})["usage"]["completion_tokens"] <= 8
    error = posted(models, {"model": "tuned", "task": "odds", "messages": turns}, status=400)["error"]
    assert "did you mean odd?" in error["message"]
    assert posted(models, chat(row={}), status=400)["error"]["message"] == "row needs task"


def test_plain_completions_of_texts_and_tokens(models):
    ids = models.prompts.from_text("the inn").ids
    for prompt in ("the inn", ids, ["the inn", "tea"], [ids, models.prompts.from_text("tea").ids]):
        answer = posted(models, {"model": "base", "prompt": prompt, "max_tokens": 9}, PLAIN)
        texts = [
            completion_of(models, models.prompts.from_text(text), "base", 9).text
            for text in ("the inn", "tea")[: len(answer["choices"])]
        ]
        assert [choice["text"] for choice in answer["choices"]] == texts
        assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))


def test_streams_join_to_the_whole_answer(models):
    body = chat(logprobs=True, top_logprobs=2, n=3, temperature=1.0, seed=7)
    whole = posted(models, body)
    text = posted(models, {**body, "stream": True, "stream_options": {"include_usage": True}})
    *chunks, usage, done = events(text)
    assert done == "[DONE]"
    chunks = [json.loads(chunk) for chunk in chunks]
    assert all(chunk["usage"] is None and chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert json.loads(usage)["choices"] == [] and json.loads(usage)["usage"] == whole["usage"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    for choice in whole["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(part["delta"].get("content", "") for part in own) == choice["message"]["content"]
        assert [part["finish_reason"] for part in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        tokens = [one for part in own for one in part["logprobs"]["content"]]
        assert [one["token"] for one in tokens] == [one["token"] for one in choice["logprobs"]["content"]]
        special = models.prompt_format.tokenizer.all_special_tokens + [
            "<pad>",
            "<bos>",
            "<|im_start|>",
            "<|endoftext|>",
        ]
        joined = bytes(byte for one in tokens if one["token"] not in special for byte in one["bytes"])
        assert joined.decode(errors="replace") == choice["message"]["content"]
        assert all(len(one["top_logprobs"]) == 2 and one["logprob"] <= 0 for one in tokens)
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 3


def test_streams_of_plain_completions(models):
    body = {"model": "tuned", "prompt": ["tea", "the inn"], "max_tokens": 12, "logprobs": 1}
    whole = posted(models, body, PLAIN)
    *chunks, _ = events(posted(models, {**body, "stream": True}, PLAIN))
    for choice in whole["choices"]:
        own = [json.loads(chunk)["choices"][0] for chunk in chunks]
        own = [part for part in own if part["index"] == choice["index"]]
        assert "".join(part["text"] for part in own) == choice["text"]
        assert [token for part in own for token in part["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]


def test_stop_texts_end_answers_and_do_not_leak(models):
    expected = completion_of(models, models.prompts.from_messages(chat()["messages"])).text
    stop = expected[5:8]
    cut = expected[: expected.index(stop)]
    whole = posted(models, chat(stop=[stop, "never"]))["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == (cut, "stop")
    *chunks, _ = events(posted(models, chat(stop=stop, stream=True)))
    assert "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks) == cut


ERRORS = {
    "unknown model": (chat(model="gpt-4"), 404, "model", "model_not_found", "the models are base and tuned"),
    "no model": ({"messages": []}, 400, "model", "missing_required_parameter", "model is missing"),
    "penalty": (chat(presence_penalty=0.5), 400, "presence_penalty", "unsupported_parameter", "presence_penalty other"),
    "tools": (chat(tools=[{"type": "function"}]), 400, "tools", "unsupported_parameter", "tools other than [] is not"),
    "schema": (chat(response_format={"type": "json_object"}), 400, "response_format", "unsupported_parameter", "text"),
    "effort": (chat(reasoning_effort="low"), 400, "reasoning_effort", "unsupported_parameter", "not supported"),
    "unknown key": (chat(temprature=1), 400, "temprature", "unknown_parameter", "did you mean temperature?"),
    "temperature": (chat(temperature=-1), 400, "temperature", "invalid_value", "temperature: input should be greater"),
    "text temperature": (chat(temperature="1"), 400, "temperature", "invalid_value", "temperature: input should be"),
    "infinite": (chat(temperature=float("inf")), 400, "temperature", "invalid_value", "temperature"),
    "top_p": (chat(top_p=-0.1), 400, "top_p", "invalid_value", "top_p"),
    "n": (chat(n=1000), 400, "n", "invalid_value", "n: input"),
    "seed": (chat(seed=2**70), 400, "seed", "invalid_value", "seed"),
    "stop": (chat(stop=[""]), 400, "stop", "invalid_value", "an empty text cannot end an answer"),
    "stops": (chat(stop=["x"] * 17), 400, "stop", "invalid_value", "stop must be a text, or a list of up to 16 texts"),
    "a stop that is a number": (chat(stop=[1]), 400, "stop", "invalid_value", "a list of up to 16 texts"),
    "two limits": (chat(max_tokens=1, max_completion_tokens=1), 400, "max_tokens", "invalid_value", "one of them"),
    "no messages": ({"model": "base"}, 400, "messages", "missing_required_parameter", "messages is missing"),
    "both": (chat(task="odd", row={}), 400, "messages", "invalid_value", "not both"),
    "empty": (chat() | {"messages": []}, 400, "messages", "invalid_prompt", "messages has no messages"),
    "role": (chat() | {"messages": [{"role": "x", "content": "y"}]}, 400, "messages", "invalid_prompt", "role 'x'"),
    "last": (chat() | {"messages": [{"role": "assistant", "content": "y"}]}, 400, "messages", "invalid_prompt", "end"),
    "image": (
        chat() | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages",
        "invalid_prompt",
        "an image",
    ),
    "task": ({"model": "base", "task": "odds", "row": {}}, 400, "row", "invalid_prompt", "did you mean odd?"),
    "column": ({"model": "base", "task": "odd", "row": {"Q": 1}}, 400, "row", "invalid_prompt", "did you mean {Q}?"),
    "row": ({"model": "base", "task": "odd"}, 400, "row", "missing_required_parameter", "task needs row"),
    "long": (chat("x" * 600), 400, "messages", "context_length_exceeded", "the context is 512 tokens"),
    "much": (chat(max_tokens=5000), 400, "messages", "context_length_exceeded", "lower max_tokens"),
    "stream": (chat(stream_options={"include_usage": True}), 400, "stream_options", "invalid_value", "stream: true"),
    "top": (chat(top_logprobs=1), 400, "top_logprobs", "invalid_value", "logprobs: true"),
    "list": ([1], 400, None, None, "no JSON object"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_chat(models, case):
    body, status, param, code, message = ERRORS[case]
    error = posted(models, body, status=status)["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert message in error["message"]
    assert error["type"] in ("invalid_request_error", "not_found_error")


def test_neutral_values_of_unsupported_parameters_are_accepted(models):
    posted(models, chat(presence_penalty=0, frequency_penalty=0.0, logit_bias=None, user="me", tools=[], n=1))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "base", "prompt": []}, "prompt"),
        ({"model": "base", "prompt": [[1], ["x"]]}, "prompt"),
        ({"model": "base", "prompt": [100000]}, "prompt"),
        ({"model": "base", "prompt": [-1]}, "prompt"),
        ({"model": "base", "prompt": ""}, "prompt"),
        ({"model": "base", "prompt": "x", "echo": True}, "echo"),
        ({"model": "base", "prompt": "x", "best_of": 2}, "best_of"),
        ({"model": "base", "prompt": "x", "messages": []}, "messages"),
        ({"model": "base"}, "prompt"),
    ],
)
def test_errors_of_plain_completions(models, body, param):
    assert posted(models, body, PLAIN, status=400)["error"]["param"] == param


def test_bodies_that_are_no_json(models):
    async def test(client, engine):
        for data, kind, status in (
            (b"{", "application/json", 400),
            (b"\xff", "application/json", 400),
            (b'{"model": "base", "model": "base"}', "application/json", 400),
            (b"[" * 100_000, "application/json", 400),
            (b'{"x": "\\ud800"}', "application/json", 400),
            (b"9" * 10_000, "application/json", 400),
            (b"{}", "text/plain", 415),
            (b"", "application/json", 400),
            (b"x" * 130_000, "application/json", 413),
        ):
            response = await client.post(CHAT, data=data, headers={"Content-Type": kind})
            assert response.status == status, (data[:20], await response.text())
            assert set((await response.json())["error"]) == {"message", "type", "param", "code"}

    with_client(models, test, max_body=120_000)


def test_routes_that_do_not_exist(models):
    async def test(client, engine):
        assert (await client.get("/v1/nothing")).status == 404
        response = await client.get(CHAT)
        assert response.status == 405 and response.headers["Allow"] == "POST"
        assert "use POST" in (await response.json())["error"]["message"]
        listed = await (await client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["base", "tuned"]
        assert (await (await client.get("/v1/models/base")).json())["max_model_len"] == 512
        assert (await client.get("/v1/models/other")).status == 404

    with_client(models, test)


def test_the_api_key(models):
    async def test(client, engine):
        for headers, status in (
            ({}, 401),
            ({"Authorization": "Bearer wrong"}, 401),
            ({"Authorization": "Bearer schl\u00fcssel"}, 401),
            ({"Authorization": "secret"}, 401),
            ({"Authorization": "Bearer secret"}, 200),
        ):
            for path in ("/v1/models", "/metrics", "/alfine/run"):
                response = await client.get(path, headers=headers)
                if status == 401 or path != "/alfine/run":
                    assert response.status == status
                if status == 401:
                    assert (await response.json())["error"]["code"] == "invalid_api_key"
        assert [(await client.get(path)).status for path in ("/health", "/ready", "/")] == [200] * 3

    with_client(models, test, api_key="secret")


def test_other_websites_and_hosts(models):
    async def test(client, engine):
        own = f"http://127.0.0.1:{client.port}"
        for headers, status in (
            ({}, 200),
            ({"Origin": own}, 200),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Host": "evil.example"}, 403),
            ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
            ({"Host": f"localhost:{client.port}"}, 200),
            ({"Host": "[::1]:80"}, 200),
            ({"Host": "192.0.2.7:8000"}, 200),
            ({"Host": "127.0.0.1.evil.example"}, 403),
            ({"Host": "LOCALHOST"}, 200),
            ({"Origin": "https://good.example"}, 200),
        ):
            response = await client.get("/v1/models", headers=headers)
            assert response.status == status, headers
            allowed = headers.get("Origin") == "https://good.example"
            assert response.headers.get("Access-Control-Allow-Origin") == ("https://good.example" if allowed else None)
        preflight = {"Origin": "https://good.example", "Access-Control-Request-Method": "POST"}
        assert (await client.options(CHAT, headers=preflight)).status == 204
        assert (await client.options(CHAT, headers={**preflight, "Origin": "http://evil.example"})).status == 403
        assert (await client.post(CHAT, json={}, headers={"Origin": "https://good.example"})).headers[
            "Access-Control-Allow-Origin"
        ] == "https://good.example"

    with_client(
        models,
        test,
        allowed_hosts=frozenset(("localhost",)),
        allowed_origins=frozenset(("https://good.example",)),
    )


def test_a_full_queue(models):
    async def test(client, engine):
        first = [
            asyncio.ensure_future(client.post(CHAT, json=chat(max_tokens=400, stream=True, seed=n, temperature=3)))
            for n in range(3)
        ]
        responses = await asyncio.gather(*first)
        refused = await client.post(CHAT, json=chat())
        assert refused.status == 429 and refused.headers["Retry-After"] == "2"
        assert (await refused.json())["error"]["code"] == "queue_full"
        assert (await client.post(CHAT, json=chat(n=4))).status == 400
        for response in responses:
            assert response.status == 200 and (await response.text()).endswith("[DONE]\n\n")
        assert (await client.post(CHAT, json=chat())).status == 200
        text = await (await client.get("/metrics")).text()
        assert 'alfine_requests_total{route="/v1/chat/completions",status="429"} 1.0' in text
        assert "alfine_waiting_answers 0.0" in text and "alfine_time_to_first_token_seconds_bucket" in text

    with_client(models, test, {"max_slots": 2}, max_concurrency=2, max_waiting=1)


def test_disconnects_cancel_the_answer(models):
    async def test(client, engine):
        for stream in (True, False):
            task = asyncio.ensure_future(client.post(CHAT, json=chat(max_tokens=450, stream=stream, stop="\0never")))
            while not engine.num_active:
                await asyncio.sleep(0.001)
            if stream:
                response = await task
                await response.content.readany()
                response.close()
            else:
                task.cancel()
            for _ in range(500):
                if not engine.num_active:
                    break
                await asyncio.sleep(0.01)
            assert engine.num_active == 0
        assert engine.statistics.ended["cancelled"] == 2

    with_client(models, test)


@pytest.mark.parametrize(
    "path, body, left_at",
    [
        (CHAT, chat(stream=True), "the status"),
        (CHAT, chat(stream=True), "the first part"),
        (PLAIN, {"model": "base", "prompt": "a", "stream": True}, "the status"),
        (CHAT, chat(), "the status"),
    ],
)
def test_a_write_to_a_client_that_has_left_is_no_error(models, path, body, left_at, caplog, monkeypatch):
    async def leave(request, response):
        if request.method == "GET":
            return
        if left_at == "the status":
            request.transport.close()
        else:  # after the status is written, before the next part is
            asyncio.get_running_loop().call_soon(request.transport.close)

    async def test(client, engine):
        with contextlib.suppress(aiohttp.ClientError):
            async with client.post(path, json=body) as response:
                await response.read()
        for _ in range(500):
            if not engine.num_active:
                break
            await asyncio.sleep(0.01)
        text = await (await client.get("/metrics")).text()
        if "stream" in body:
            assert f'alfine_requests_total{{route="{path}",status="disconnected"}} 1.0' in text
        assert 'status="5' not in text and engine.num_active == 0

    monkeypatch.setattr("pipelines.serving.app.add_cors_headers", lambda settings: leave)
    with_client(models, test)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_connection_that_the_server_itself_lost_is_an_error(models, monkeypatch):
    async def test(client, engine):
        def refused(*arguments):
            raise ConnectionRefusedError("nothing listens")

        monkeypatch.setattr(engine, "submit", refused)
        response = await client.post(CHAT, json=chat())
        assert response.status == 500 and "its log says why" in (await response.json())["error"]["message"]

    with_client(models, test)


def test_failures_of_the_engine(models, monkeypatch):
    async def test(client, engine):
        monkeypatch.setattr("pipelines.inference.engine.RequestPool.step", lambda self: 1 / 0)
        response = await client.post(CHAT, json=chat())
        assert response.status == 500 and "ZeroDivisionError" in (await response.json())["error"]["message"]
        text = await (await client.post(CHAT, json=chat(stream=True))).text()
        assert json.loads(events(text)[-1])["error"]["code"] == "engine_error"
        monkeypatch.undo()
        assert (await client.post(CHAT, json=chat())).status == 200

    with_client(models, test)


def test_prompts_of_many_threads_at_once(models):
    async def test(client, engine):
        bodies = [chat(f"tea {number} " * (number % 7 + 1), max_tokens=3) for number in range(40)]
        responses = await asyncio.gather(*(client.post(CHAT, json=body) for body in bodies))
        answers = [await response.json() for response in responses]
        for body, answer in zip(bodies, answers, strict=True):
            prompt = models.prompts.from_messages(body["messages"])
            expected = engine.submit(GenerationRequest("tuned", prompt.ids, 3))
            assert answer["choices"][0]["message"]["content"] == (await expected.wait()).text

    with_client(models, test)
