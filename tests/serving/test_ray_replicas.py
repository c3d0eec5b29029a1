"""`serve --ray`: two replicas on a cluster that others use as well."""

import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from pipelines.evaluation.completions import complete
from pipelines.serving.ray_replicas import has_controller
from tests.inference.tiny_run import load_models, make_run
from tests.serving.api import CHAT, chat, events, process

pytestmark = pytest.mark.model
LONG = {"max_tokens": 450, "temperature": 3, "seed": 1}


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[serve]'")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
    yield ray
    ray.shutdown()


def replicas():
    """The processes of the replicas on this test's cluster."""
    found = []
    for one in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica" in " ".join(one.cmdline()):
                found.append(one)
        except psutil.Error:  # it has just ended
            continue
    return found


def num_answers(client):
    """The answers of which a part has come, and not the last."""
    return float(re.search(r"^alfine_active_answers (\S+)", client.get("/metrics").text, re.MULTILINE)[1])


def until(condition):
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def expected(models, text):
    prompt = models.prompts.from_messages([{"role": "user", "content": text}])
    with models.active("tuned") as loaded:
        return complete(loaded, [prompt.ids], {}, [prompt.max_new_tokens])[0].text


def test_two_replicas(ray, tmp_path):
    serve = pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ray[serve]'")
    run = make_run(tmp_path)
    address = ray.get_runtime_context().gcs_address
    with process(run, "--ray", "--replicas", "2", RAY_ADDRESS=address) as (serving, url, lines):
        (application,) = serve.status().applications
        handle = serve.get_app_handle(application)

        def num_cancelled():
            """Of a replica that Ray chooses."""
            return handle.statistics.remote().result().ended["cancelled"]

        with httpx.Client(base_url=url, timeout=120) as client:
            _check_answers(client, load_models(run))
            with client.stream("POST", CHAT, json=chat(**LONG, n=16, stream=True)) as response:
                parts = response.iter_text()  # kept: httpx disconnects when it is dropped
                next(parts)
                assert not num_cancelled()
            until(num_cancelled)
            _check_deaths(client)
        serving.send_signal(signal.SIGTERM)
    assert serving.returncode == 0 and "Traceback" not in "".join(lines)
    until(lambda: not replicas() and not has_controller())
    assert ray.is_initialized()


def _check_answers(client, models):
    texts = [f"tea {number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda text: client.post(CHAT, json=chat(text)), texts))
    answers = [response.json()["choices"][0]["message"]["content"] for response in responses]
    assert answers == [expected(models, text) for text in texts]


def _check_deaths(client):
    """All replicas die: their requests get an error, and the next one an answer."""
    assert len(replicas()) == 2
    results = {}

    def whole():
        results["whole"] = client.post(CHAT, json=chat(**LONG, n=8))

    def streamed():
        with client.stream("POST", CHAT, json=chat(**LONG, n=8, stream=True)) as response:
            results["streamed"] = "".join(response.iter_text())

    threads = [threading.Thread(target=one) for one in (whole, streamed)]
    for thread in threads:
        thread.start()
    until(lambda: num_answers(client) > 8)  # of both requests
    for one in replicas():
        one.kill()
    for thread in threads:
        thread.join(60)
    message = "the replica that computed the answer has died; send the request again"
    assert results["whole"].status_code == 500 and results["whole"].json()["error"]["message"] == message
    assert message in events(results["streamed"])[-1]
    assert client.post(CHAT, json=chat()).status_code == 200
