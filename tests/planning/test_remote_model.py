"""The sizes of a model that is only on the Hub, read from a stand-in for its API on this machine."""

import json
import os
import subprocess
import sys

import pytest

from tests.hub_stand_in import COMMIT, HubStandIn

SCRIPT = """
import json, sys
from pipelines.errors import AlfineError
from pipelines.planning.remote_model import find_remote_model

for name in sys.argv[1:]:
    try:
        model = find_remote_model(name)
        shape = {key: value for key, value in vars(model.shape).items() if key != "modules"}
        print(json.dumps({"download": model.download_bytes, "shape": shape}))
    except AlfineError as error:
        print(json.dumps({"error": str(error)}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    from tests.tiny import make_model

    return make_model(tmp_path_factory.mktemp("base"))


def find(hub, tmp_path, *names):
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", SCRIPT, *names]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_sizes_are_read_without_downloading_weights(tmp_path, base):
    from pipelines.planning.model_shape import ModelShape

    files = {path.name: path.read_bytes() for path in base.iterdir()}
    with HubStandIn({"models/o/tiny": {COMMIT: files}}) as hub:
        (found,) = find(hub, tmp_path, "o/tiny")
        expected = {key: value for key, value in vars(ModelShape.from_folder(base)).items() if key != "modules"}
        assert found["shape"] == expected
        assert found["download"] >= len(files["model.safetensors"])
        whole = [request for request in hub.requests if request.startswith("GET") and "safetensors" in request]
        assert whole and not list((tmp_path / "hub").rglob("*.safetensors"))


def test_a_model_that_cannot_be_read_is_one_line(tmp_path, base):
    files = {"config.json": (base / "config.json").read_bytes(), "pytorch_model.bin": b"x"}
    repositories = {"models/o/pickled": {COMMIT: files}, "models/o/private": {COMMIT: files}}
    with HubStandIn(repositories, denied={"models/o/private"}) as hub:
        errors = [found["error"] for found in find(hub, tmp_path, "o/none", "o/private", "o/pickled")]
    assert all("\n" not in error for error in errors)
    assert "not found on the Hub, or private (set HF_TOKEN)" in errors[0] and "set HF_TOKEN" in errors[1]
    assert "sizes cannot be read from the Hub" in errors[2]
