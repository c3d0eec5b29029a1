"""The cache folder: its path, the early check that it is writable, and a home directory for every user id."""

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
from pipelines.modeling.base_models import PACKAGED_MODELS, ensure_packaged_model
from pipelines.storage import cache
from pipelines.storage.cache import cache_folder, check_cache, checked_cache_path, ensure_home
from pipelines.storage.files import os_errors_as_machine_error, write_text
from tests.test_cli import write_job

ROOT = Path(__file__).parents[2]
NO_NAME = 54321
"""A user id that no system gives a name."""


@pytest.fixture(autouse=True)
def cache_checked_again():
    cache._check_writable.cache_clear()
    yield
    cache._check_writable.cache_clear()


def unwritable_folder(kind, folder):
    """A cache folder that cannot be written, of one of KINDS."""
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
    "a read-only file system": "no such file",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_cache_that_cannot_be_written_is_one_line_before_anything_else(tmp_path, monkeypatch, kind, command):
    folder = unwritable_folder(kind, tmp_path / "kept")
    monkeypatch.setenv("ALFINE_CACHE", str(folder))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [command, str(write_job(tmp_path))])
    assert result.exit_code == 1 and not isinstance(result.exception, OSError)
    (line,) = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert str(folder) in line and KINDS[kind] in line and "ALFINE_CACHE names another folder" in line
    assert "Base model" not in result.output


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_cannot_be_unpacked_names_the_cache_too(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("ALFINE_CACHE", str(folder := unwritable_folder(kind, tmp_path / "kept")))
    with pytest.raises(MachineError, match="ALFINE_CACHE") as caught:
        ensure_packaged_model(PACKAGED_MODELS["smollm2-135m-instruct"])
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied"),
        OSError(30, "Read-only file system"),
        OSError(28, "No space left on device"),
    ],
)
def test_a_read_only_or_full_cache(tmp_path, monkeypatch, error):
    monkeypatch.setenv("ALFINE_CACHE", str(tmp_path))
    (tmp_path / "completions" / "one").mkdir(parents=True)
    with mock.patch.object(cache.tempfile, "TemporaryFile", side_effect=error):
        check_cache()  # filled: what it holds can be read
        assert checked_cache_path("completions", "one") == tmp_path / "completions" / "one"
        with pytest.raises(
            MachineError, match=f"{tmp_path} cannot be written .{error.strerror.lower()}.; ALFINE_CACHE"
        ) as caught:
            checked_cache_path("completions", "two")
    assert caught.value.exit_code == 1


def test_the_check_leaves_no_file(tmp_path, monkeypatch):
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
        os_errors_as_machine_error(tmp_path / "run"),
    ):
        write_text(tmp_path / "cache" / "a.json", "x")


def test_a_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ALFINE_CACHE", "~/kept")
    assert cache_folder() == tmp_path / "kept"


def as_unknown_user(code, **variables):
    """The lines that Python prints for `code`, run without HOME by a user id that has no name."""
    ours = ["unshare", "--user", f"--map-user={NO_NAME}", f"--map-group={NO_NAME}"]
    if subprocess.run([*ours, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no other user id")
    known = {
        name: value
        for name, value in os.environ.items()
        if name not in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "ALFINE_CACHE", "XDG_CACHE_HOME")
    }
    environment = {**known, "PYTHONPATH": str(ROOT), **variables}
    process = subprocess.run(
        [*ours, sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.splitlines()


def test_a_user_id_without_a_name_or_home(tmp_path):
    code = (
        "import getpass, os\nfrom pathlib import Path\n"
        "from pipelines.storage.cache import cache_folder, check_cache, ensure_home\n"
        "ensure_home()\ncheck_cache()\nmode = oct(os.stat(cache_folder()).st_mode)[-3:]\n"
        "print(cache_folder(), Path.home(), getpass.getuser(), mode, sep='\\n')"
    )
    home = tmp_path / f"alfine-{NO_NAME}"
    for given in ({}, {"HOME": ""}):
        assert as_unknown_user(code, TMPDIR=str(tmp_path), **given) == [
            f"{home}/.cache/alfine",
            str(home),
            f"uid-{NO_NAME}",
            "700",
        ]
    assert home.stat().st_mode & 0o777 == 0o700
    assert as_unknown_user(code, ALFINE_CACHE=str(tmp_path / "mine"))[:2] == [str(tmp_path / "mine")] * 2
    assert as_unknown_user(code, TMPDIR=str(tmp_path), ALFINE_CACHE="~/c")[0] == str(home / "c")


def test_the_home_of_an_unknown_user(monkeypatch):
    monkeypatch.setenv("ALFINE_CACHE", "~no-such-user/cache")
    with pytest.raises(MachineError, match="ALFINE_CACHE is ~no-such-user/cache, and there is no such home directory"):
        cache_folder()


@pytest.mark.parametrize("home", ["", "relative/folder", None])
def test_a_known_user_without_home_gets_the_systems(monkeypatch, home):
    monkeypatch.setenv("HOME", home or "")
    if home is None:
        monkeypatch.delenv("HOME")
    ensure_home()
    assert os.environ["HOME"] == pwd.getpwuid(os.getuid()).pw_dir


def test_a_temporary_folder_of_another_user_is_rejected(tmp_path, monkeypatch):
    monkeypatch.delenv("ALFINE_CACHE", raising=False)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("pipelines.storage.cache.user_cache_path", mock.Mock(side_effect=RuntimeError))
    (tmp_path / "elsewhere").mkdir()
    cache_folder().symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MachineError, match="it belongs to another user"):
        check_cache()


def test_a_known_user_keeps_the_environment(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    before = dict(os.environ)
    ensure_home()
    assert dict(os.environ) == before
