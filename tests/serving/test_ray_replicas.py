"""`serve --ray`: two replicas on a cluster that others use as well."""

import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from pipelines.errors import MachineError
from pipelines.evaluation.completions import complete
from pipelines.modeling.safetensors_header import num_parameters
from pipelines.prediction.models import tuned_job
from pipelines.serving import ray_replicas
from pipelines.serving.ray_replicas import has_controller
from tests.inference.tiny_run import load_models, make_run
from tests.serving.api import CHAT, chat, events, process

pytestmark = pytest.mark.model
LONG = {"max_tokens": 450, "temperature": 3, "seed": 1}


@pytest.fixture
def ray(monkeypatch):
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests, Ray's own 15 leaves workers next to nothing
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


def until(condition, seconds=60):
    deadline = time.monotonic() + seconds
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


def test_replicas_that_cannot_start_are_one_line(ray, tmp_path):
    """The front reads the tokenizer only; each replica then finds that the weights cannot be loaded."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed: pip install 'ray[serve]'")
    run = make_run(tmp_path)
    weights = run.path("model", "adapter_model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-50])
    address = ray.get_runtime_context().gcs_address
    with pytest.raises(pytest.fail.Exception) as failure, process(run, "--ray", RAY_ADDRESS=address):
        pass
    lines = str(failure.value).splitlines()
    assert [line for line in lines if line.startswith("error:")] == lines[-1:], lines
    assert "the replicas on Ray did not start" in lines[-1] and "adapter_model.safetensors" in lines[-1]
    assert "Traceback" not in str(failure.value)
    until(lambda: not replicas() and not has_controller())


def test_the_cause_of_a_failed_start_is_one_line():
    start = "The deployment failed to start 2 times in a row. See controller logs for details. Error:\n"
    traceback = "ray::Replica() (pid=1)\n  File x.py, line 3\npipelines.errors.ModelError: model 'x' is truncated\n"
    died = "ActorDiedError('The actor died unexpectedly before finishing this task.\\n\\tclass_name: x')"
    causes = [ray_replicas._cause_of_message(message) for message in (start + traceback, start + died, "Upscaling.")]
    assert causes == [
        "model 'x' is truncated",
        "the process of a replica has ended, as it does when memory runs out",
        None,
    ]


def test_replicas_that_memory_does_not_hold_are_not_started(tmp_path, monkeypatch):
    run = make_run(tmp_path)
    job = tuned_job(run)
    parameters = num_parameters(tmp_path / "base")
    monkeypatch.setattr(ray_replicas, "free_main_memory", lambda: 4 * 4 * parameters)
    ray_replicas._check_memory(job, run, 4)
    with pytest.raises(MachineError, match="the weights of 5 replicas take .* GB of main memory; .* lower --replicas"):
        ray_replicas._check_memory(job, run, 5)


def _check_answers(client, models):
    texts = [f"tea {number}" for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda text: client.post(CHAT, json=chat(text)), texts))
    answers = [response.json()["choices"][0]["message"]["content"] for response in responses]
    assert answers == [expected(models, text) for text in texts]


def _check_deaths(client):
    """All replicas die: their requests get an error, further ones are refused, and then answered by new replicas."""
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
    assert results["whole"].status_code == 503 and results["whole"].json()["error"]["message"] == message
    assert message in events(results["streamed"])[-1]
    until(lambda: client.get("/ready").status_code == 503)
    refused, ready = client.post(CHAT, json=chat()), client.get("/ready")
    if ready.status_code == 503:  # otherwise a replica has come back meanwhile
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "unavailable"
        assert refused.headers["Retry-After"] and "no replica is running" in refused.json()["error"]["message"]
        assert ready.json()["reason"] == refused.json()["error"]["message"]
    until(lambda: client.get("/ready").status_code == 200, 300)  # a replica imports torch and loads the models
    assert client.post(CHAT, json=chat()).status_code == 200
