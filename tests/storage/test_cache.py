"""The cache folder: where it is, that it can be written before anything is computed, and that a user id without a home has one."""

import os
import pwd
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.errors import MachineError
from pipelines.modeling.base_models import EMBEDDED, embedded_model
from pipelines.storage import cache
from pipelines.storage.cache import cache_folder, cached, check_cache, settle_home
from pipelines.storage.run_folder import machine_errors, write_text
from tests.test_cli import write_job

ROOT = Path(__file__).parents[2]
NO_NAME = 54321
"""A user id that no system gives a name."""


@pytest.fixture(autouse=True)
def asked_anew():
    cache._check_writable.cache_clear()
    yield
    cache._check_writable.cache_clear()


def unwritable(kind, folder):
    """A cache folder that takes nothing, of one of several kinds."""
    if kind == "a file":
        folder.write_text("")
        return folder
    if kind == "below a file":
        folder.write_text("")
        return folder / "cache"
    return Path("/proc/nowhere")


KINDS = {
    "a file": "a file is in its way",
    "below a file": "a file is in its way",
    "a file system that takes none": "no such file",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["run", "bakeoff"])
def test_a_cache_that_cannot_be_written_is_one_line_before_anything_else(tmp_path, monkeypatch, kind, command):
    place = unwritable(kind, tmp_path / "kept")
    monkeypatch.setenv("ALFINE_CACHE", str(place))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [command, str(write_job(tmp_path))])
    assert result.exit_code == 1 and not isinstance(result.exception, OSError)
    (line,) = [one for one in result.output.splitlines() if one.startswith("error: ")]
    assert str(place) in line and KINDS[kind] in line and "ALFINE_CACHE names another folder" in line
    assert "Base model" not in result.output


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_cannot_be_unpacked_names_the_cache_too(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ALFINE_CACHE", str(place := unwritable(kind, tmp_path / "kept")))
    with pytest.raises(MachineError, match="ALFINE_CACHE") as caught:
        embedded_model(EMBEDDED["smollm2-135m-instruct"])
    assert str(place) in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        OSError(30, "Read-only file system"),
        OSError(28, "No space left on device"),
    ],
)
def test_read_only_and_full(tmp_path, monkeypatch, error):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path))
    (tmp_path / "completions" / "one").mkdir(parents=True)
    with mock.patch.object(cache.tempfile, "TemporaryFile", side_effect=error):
        check_cache()  # filled: what it holds can be read
        assert cached("completions", "one") == tmp_path / "completions" / "one"
        with pytest.raises(
            MachineError, match=f"{tmp_path} cannot be written .{error.strerror.lower()}.; ALFINE_CACHE"
        ) as caught:
            cached("completions", "two")
    assert caught.value.exit_code == 1


def test_what_can_be_written_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "new" / "cache"))
    check_cache()
    assert list((tmp_path / "new" / "cache").iterdir()) == []


def test_a_cache_that_fills_up_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path / "cache"))
    full = OSError(28, "No space left on device")
    with (
        mock.patch.object(os, "fsync", side_effect=full),
        pytest.raises(
            MachineError, match=r"cache/a\.json: no space left on device .*ALFINE_CACHE names another folder"
        ),
        machine_errors(tmp_path / "run"),
    ):
        write_text(tmp_path / "cache" / "a.json", "x")


def test_a_tilde_is_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALFINE_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"


def as_nobody(code, **variables):
    """What Python prints for `code`, run without HOME by a user id that has no name."""
    ours = ["unshare", "--user", f"--map-user={NO_NAME}", f"--map-group={NO_NAME}"]
    if subprocess.run([*ours, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no other user id")
    known = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "ALFINE_CACHE", "XDG_CACHE_HOME")
    }
    environment = {**known, "PYTHONPATH": str(ROOT), **variables}
    done = subprocess.run(
        [*ours, sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_user_id_without_a_name_or_home(tmp_path):
    code = (
        "import getpass, os\nfrom pathlib import Path\nfrom pipelines.storage.cache import cache_folder, check_cache, settle_home\n"
        "settle_home()\ncheck_cache()\nprint(cache_folder(), Path.home(), getpass.getuser(), oct(os.stat(cache_folder()).st_mode)[-3:], sep='\\n')"
    )
    home = tmp_path / f"alfine-{NO_NAME}"
    for given in ({}, {"HOME": ""}):
        assert as_nobody(code, TMPDIR=str(tmp_path), **given) == [
            f"{home}/.cache/alfine",
            str(home),
            f"uid-{NO_NAME}",
            "700",
        ]
    assert home.stat().st_mode & 0o777 == 0o700
    assert as_nobody(code, ALFINE_CACHE=str(tmp_path / "mine"))[:2] == [str(tmp_path / "mine")] * 2
    assert as_nobody(code, TMPDIR=str(tmp_path), ALFINE_CACHE="~/c")[0] == str(home / "c")


def test_the_home_of_somebody_unknown(monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", "~no-such-user/cache")
    with pytest.raises(MachineError, match="ALFINE_CACHE is ~no-such-user/cache, and there is no such home"):
        cache_folder()


@pytest.mark.parametrize("home", ["", "relative/place", None])
def test_a_known_user_without_a_home_has_the_systems(monkeypatch, home):
    monkeypatch.setenv("HOME", home or "")
    if home is None:
        monkeypatch.delenv("HOME")
    settle_home()
    assert os.environ["HOME"] == pwd.getpwuid(os.getuid()).pw_dir


def test_a_folder_that_a_stranger_has_made_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.delenv("ALFINE_CACHE", raising=False)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_path", mock.Mock(side_effect=RuntimeError))
    (tmp_path / "elsewhere").mkdir()
    cache_folder().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MachineError, match="it belongs to another user"):
        check_cache()


def test_a_known_user_keeps_what_is_set(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    before = dict(os.environ)
    settle_home()
    assert dict(os.environ) == before
