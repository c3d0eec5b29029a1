"""The server as a process, and OpenAI's own client."""

import asyncio
import json
import signal
import socket
import sys
import time

import httpx
import openai
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.evaluation.completions import complete
from pipelines.inference.engine import GenerationEngine
from pipelines.serving import server
from pipelines.serving.app import SERVICE, create_app
from pipelines.serving.settings import ServerSettings
from tests.inference.tiny_run import load_models, make_run
from tests.serving.api import CHAT, chat, events, process, running_server


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def models(run):
    return load_models(run)


@pytest.fixture(scope="module")
def address(models):
    with running_server(models, api_key="secret") as running:
        yield running


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="secret", max_retries=0) as one:
        yield one


def expected_text(models, text, name="tuned", limit=None):
    prompt = models.prompts.from_messages([{"role": "user", "content": text}])
    with models.active(name) as loaded:
        return complete(loaded, [prompt.ids], {}, [limit or prompt.max_new_tokens])[0].text


# --- OpenAI's client -----------------------------------------------------------------------------------


def test_chat_streamed_and_not(client, models):
    messages = [{"role": "user", "content": "the tea"}]
    assert [model.id for model in client.models.list()] == ["base", "tuned"]
    for name in ("base", "tuned"):
        whole = client.chat.completions.create(model=name, messages=messages, logprobs=True, top_logprobs=3)
        text = expected_text(models, "the tea", name)
        assert whole.choices[0].message.content == text
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
        assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 3
        parts = list(
            client.chat.completions.create(
                model=name, messages=messages, stream=True, stream_options={"include_usage": True}
            )
        )
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == text
        assert parts[-1].usage == whole.usage


def test_rows_seeds_and_plain_completions(client, models):
    row = client.chat.completions.create(
        model="tuned", messages=[], extra_body={"task": "odd", "row": {"q": "is 1 odd"}}
    )
    prompt = models.prompts.from_row("odd", {"q": "is 1 odd"})
    with models.active("tuned") as loaded:
        assert row.choices[0].message.content == complete(loaded, [prompt.ids], {}, [prompt.max_new_tokens])[0].text
    sampled = [
        client.completions.create(model="base", prompt="the", temperature=2, seed=seed, max_tokens=20).choices[0].text
        for seed in (3, 3, 4)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_errors_are_those_that_the_client_knows(client, address):
    messages = [{"role": "user", "content": "the tea"}]
    with pytest.raises(openai.NotFoundError, match="the models are base and tuned"):
        client.chat.completions.create(model="gpt-4", messages=messages)
    with pytest.raises(openai.BadRequestError, match="presence_penalty other than 0 is not supported") as found:
        client.chat.completions.create(model="base", messages=messages, presence_penalty=1)
    assert (found.value.param, found.value.code) == ("presence_penalty", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "x" * 600}])
    assert found.value.code == "context_length_exceeded"
    with (
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError, match="wrong API key"),
    ):
        other.models.list()


def test_the_asynchronous_client(address, models):
    async def main():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="secret") as client:

            async def ask(number):
                stream = await client.chat.completions.create(
                    model="tuned", messages=[{"role": "user", "content": f"tea {number}"}], stream=True
                )
                return "".join([part.choices[0].delta.content or "" async for part in stream])

            return await asyncio.gather(*map(ask, range(12)))

    assert asyncio.run(main()) == [expected_text(models, f"tea {number}") for number in range(12)]


# --- start and stop ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_answers_finish_when_the_server_is_stopped(run, number):
    with process(run, "--stop-timeout", "20", ALFINE_API_KEY="key") as (serving, address, lines):
        headers = {"Authorization": "Bearer key"}
        body = chat(max_tokens=450, stream=True, temperature=3, seed=1)
        with (
            httpx.Client(base_url=address, headers=headers, timeout=30) as client,
            client.stream("POST", CHAT, json=body) as response,
        ):
            text = response.iter_text()
            received = next(text)
            serving.send_signal(number)
            deadline = time.monotonic() + 10
            while client.get("/ready").status_code == 200 and time.monotonic() < deadline:
                time.sleep(0.01)
            refused = client.post(CHAT, json=chat())
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
            received += "".join(text)
        last = json.loads(events(received)[-2])
        assert last["choices"][0]["finish_reason"] in ("stop", "length") and events(received)[-1] == "[DONE]"
        serving.wait(30)
    assert serving.returncode == 0
    assert "Traceback" not in "".join(lines) and "warning" not in "".join(lines)


def test_answers_that_do_not_finish_in_time_are_cut_off(models):
    async def main():
        with GenerationEngine(models) as engine:
            app = create_app(models, engine, ServerSettings(stop_timeout=0.05))
            bound = server.bind("127.0.0.1", 0)
            address, notes, started = server.address_of(bound), [], asyncio.Event()
            running = asyncio.create_task(server.serve(app, bound, started.set, notes.append))
            await started.wait()
            engine.models._lock.acquire()  # the engine computes nothing until the end
            async with httpx.AsyncClient() as client:
                asked = asyncio.create_task(client.post(f"{address}{CHAT}", json=chat()))
                while not app[SERVICE].num_running:
                    await asyncio.sleep(0.01)
                signal.raise_signal(signal.SIGTERM)
                await asyncio.wait_for(running, 20)
                with pytest.raises(httpx.HTTPError):
                    await asked
            engine.models._lock.release()
            return notes

    notes = asyncio.run(main())
    assert notes == ["Stopping: 1 running answers have 0.05 s to finish", "1 answers were cut off"]


def command(*words, env=None):
    result = CliRunner().invoke(main, ["serve", *map(str, words)], env=env)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_a_port_in_use(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = command(run.folder, "--port", port)
    assert result.exit_code == 2
    assert f"error: port {port} of 127.0.0.1 is in use; stop the other server, or write --port N" in result.stderr


@pytest.mark.parametrize(
    ("words", "env", "message"),
    [
        (["--host", "no.such.host.invalid"], None, "--host no.such.host.invalid: "),
        (["--host", "192.0.2.1"], None, "--host 192.0.2.1 --port 8000: "),
        ([], {"ALFINE_API_KEY": " "}, "the variable ALFINE_API_KEY holds no API key"),
        (["--api-key-env", "MINE"], {"MINE": "schl\u00fcssel"}, "the variable MINE holds no API key"),
        (["--allow-origin", "example.org"], None, "--allow-origin example.org: write an origin"),
        (["--allow-origin", "https://example.org/x"], None, "write an origin, as in https://example.org"),
    ],
)
def test_options_that_cannot_be_used(run, words, env, message):
    result = command(run.folder, *words, env=env)
    assert result.exit_code == 2 and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_replicas_without_ray(run, monkeypatch):
    result = command(run.folder, "--port", 0, "--replicas", 2)
    assert (result.exit_code, result.stderr) == (2, "error: --replicas applies to --ray; add --ray\n")
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    result = command(run.folder, "--port", 0, "--ray")
    assert result.exit_code == 2
    assert "--ray needs Ray Serve, which is not installed; pip install 'ray[serve]'" in result.stderr


def test_runs_without_a_model(run, tmp_path):
    assert "is not a run folder" in command(tmp_path).stderr
    (tmp_path / "manifest.json").write_text(json.dumps({"format_version": 2, "stages": {}}))
    result = command(tmp_path)
    assert result.exit_code == 2 and "has no tuned model yet; finish it with: alfine run CONFIG" in result.stderr


def test_which_addresses_are_public():
    assert [server.is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.1.2.3")] == [True] * 4
    assert [server.is_loopback(host) for host in ("0.0.0.0", "::", "192.168.1.2", "example.org")] == [False] * 4
