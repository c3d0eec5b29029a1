"""`alfine publish` against a stand-in for the Hub's HTTP API (tests/exporting/hub_server.py), by the official client."""

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
from huggingface_hub import constants

from pipelines.errors import ConfigError
from pipelines.exporting.publish import check_repository
from tests.exporting.hub_server import READ_ONLY, TOKEN, Hub, Repository
from tests.exporting.test_export import invoke
from tests.jobs import run

pytestmark = pytest.mark.ludwig


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the stand-in has Git LFS, not Xet
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    with Hub() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def publish(hub, *arguments, token=TOKEN, address=None):
    environment = {"HF_TOKEN": token} if token else {}
    with mock.patch.object(constants, "ENDPOINT", address or hub.address), mock.patch.dict(os.environ, environment):
        return invoke("publish", *arguments)


def error_of(process, code=2):
    assert process.exit_code == code, process.stdout + process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in process.stderr, process.stderr
    return lines[0]


def test_an_export_is_published_as_it_was_checked(project, hub):
    folder = run().folder
    arguments = (folder, "anna/reviews", "--to", "adapter")

    dry = publish(hub, *arguments, "--dry-run", token=None)
    assert dry.exit_code == 0, dry.stderr
    assert "anna/reviews (private): " in dry.stdout and "adapter_model.safetensors" in dry.stdout
    assert not hub.requests and "check: passed" in dry.stdout
    export = folder / "export" / "adapter"

    assert "there is no token" in error_of(publish(hub, *arguments, token=None), 1) and not hub.requests
    assert "does not accept the token" in error_of(publish(hub, *arguments, token="hf_wrong"), 1)
    assert "may not write to anna/reviews" in error_of(publish(hub, *arguments, token=READ_ONLY), 1)
    nowhere = publish(hub, *arguments, address="http://127.0.0.1:9")
    assert "cannot be reached" in error_of(nowhere, 1)
    assert "may not write to bert/x" in error_of(publish(hub, folder, "bert/x", "--to", "adapter"), 1)
    assert not hub.repositories

    done = publish(hub, *arguments)
    assert done.exit_code == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"published: {hub.address}/anna/reviews"
    repository = hub.repositories["anna/reviews"]
    local = {path.name: path.read_bytes() for path in export.iterdir()}
    assert repository.private and repository.branches["main"] == {**local, ".gitattributes": b"*"}
    assert hub.commits == 1 and any(name.startswith("PUT /lfs/") for name in hub.requests)

    # The license is filled in by hand; a file that the new export does not have is removed.
    record = json.loads((export / "export.json").read_text())
    stale = {**record, "files": [*record["files"], {"name": "old.bin", "size": 1, "sha256": ""}]}
    repository.branches["main"] |= {"old.bin": b"x", "mine.txt": b"y", "export.json": json.dumps(stale).encode()}
    card = (export / "README.md").read_text().replace("license: unknown", "license: mit")
    (export / "README.md").write_text(card)
    again = publish(hub, *arguments)
    assert again.exit_code == 0, again.stderr
    assert b"license: mit" in repository.branches["main"]["README.md"]
    assert "old.bin" not in repository.branches["main"] and "mine.txt" in repository.branches["main"]

    branch = publish(hub, *arguments, "--revision", "second")
    assert branch.exit_code == 0, branch.stderr
    assert set(repository.branches) == {"main", "second"} and branch.stdout.strip().endswith("/tree/second")

    public = publish(hub, *arguments, "--public")
    assert "is private" in error_of(public)
    repository.private = False
    assert "is public" in error_of(publish(hub, *arguments))
    hub.repositories["anna/other"] = Repository(True, {"main": {"model.bin": b"x", "README.md": b""}})
    assert "has other content (model.bin)" in error_of(publish(hub, folder, "anna/other", "--to", "adapter"))

    check_refused_exports(hub, folder, export)


def check_refused_exports(hub, folder, export):
    """Exports that are not those that were checked."""
    changed = Path("changed")
    requests = len(hub.requests)

    def refused(change):
        shutil.rmtree(changed, ignore_errors=True)
        shutil.copytree(export, changed)
        change()
        return error_of(publish(hub, folder, "anna/new", "--export", changed))

    def set_record(**values):
        path = changed / "export.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    weights = changed / "adapter_model.safetensors"
    assert "was changed since the check" in refused(lambda: weights.write_bytes(weights.read_bytes() + b"x"))
    assert "is missing" in refused(lambda: (changed / "tokenizer.json").unlink())
    assert "another training" in refused(lambda: set_record(model="0" * 16))
    assert "is damaged" in refused(lambda: (changed / "export.json").write_text("{"))
    assert "has no export.json" in refused(lambda: (changed / "export.json").unlink())
    check = json.loads((export / "export.json").read_text())["check"]
    failed = {**check, "passed": False, "problems": ["5 of 8 answers differ"]}
    assert "failed its check (5 of 8 answers differ)" in refused(lambda: set_record(check=failed))
    assert len(hub.requests) == requests


@pytest.mark.parametrize("name", ["reviews", "anna/", "/reviews", "anna/a/b", "anna/a b", "anna/..", "a/b.git", "é/x"])
def test_names_of_repositories_are_checked(name):
    with pytest.raises(ConfigError, match="write owner/name"):
        check_repository(name)


def test_usual_names_are_accepted():
    for name in ("anna/reviews", "anna-b/SmolLM2-135M_v1.0", "a/b"):
        check_repository(name)
