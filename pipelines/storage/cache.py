"""The cache folder that all runs of a user share: unpacked models, completions of base models, Fisher information."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import sys
import tempfile
from pathlib import Path

from platformdirs import user_cache_path

from pipelines.errors import MachineError

if sys.platform != "win32":
    import pwd

ALFINE_CACHE_HINT = "ALFINE_CACHE names another folder"


def cache_folder() -> Path:
    """The environment variable ALFINE_CACHE, else the user's cache folder.

    Without a home directory (a container's user id) it is a folder of that id in the machine's temporary folder. Raises
    MachineError if ALFINE_CACHE starts with `~` and there is no such home directory.
    """
    if override := os.environ.get("ALFINE_CACHE"):
        folder = os.path.expanduser(override)
        if folder.startswith("~"):
            raise MachineError(f"ALFINE_CACHE is {override}, and there is no such home directory; use an absolute path")
        return Path(folder)
    try:
        user_folder = user_cache_path("alfine")
    except RuntimeError:
        return _temporary_folder()
    # A `~` that cannot be expanded stays in the path; the folder `~` would be created in the working directory.
    return _temporary_folder() if str(user_folder).startswith("~") else user_folder


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"alfine-{os.getuid()}"


def checked_cache_path(*parts: str) -> Path:
    """The path of a result in the cache. If there is no result yet, the cache is checked to be writable.

    Raises MachineError if the result is missing and the cache is not writable: before the result is computed.
    """
    path = cache_folder().joinpath(*parts)
    if not path.exists():
        _check_writable(cache_folder())
    return path


def check_cache() -> None:
    """Raises MachineError if the cache is empty and not writable. A filled read-only cache is sufficient for a run
    that needs no more than it holds, see `checked_cache_path`."""
    folder = cache_folder()
    try:
        is_filled = any(folder.iterdir())
    except OSError:
        is_filled = False
    if not is_filled:
        _check_writable(folder)


@functools.cache
def _check_writable(folder: Path) -> None:
    """Creates the folder, and a temporary file in it. Raises MachineError if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise MachineError(cache_write_error(folder, error)) from None


def cache_write_error(folder: Path, error: OSError) -> str:
    """The message for a cache folder that cannot be written."""
    reason = (
        "a file is in its way"
        if isinstance(error, FileExistsError | NotADirectoryError)
        else error.strerror or str(error)
    )
    return f"the cache folder {folder} cannot be written ({reason.lower()}); {ALFINE_CACHE_HINT}"


def _check_owner(folder: Path) -> None:
    """Raises PermissionError for a temporary folder of another user, who could have put any model into it."""
    if folder != _temporary_folder() or os.environ.get("ALFINE_CACHE"):
        return
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(errno.EACCES, "it belongs to another user")


def ensure_home() -> None:
    """Sets HOME and LOGNAME if they are missing and the system does not know the user id, as in containers.

    Libraries read both, and some end in a traceback without them.
    """
    if sys.platform == "win32":  # every user has a home directory
        return
    home = None
    with contextlib.suppress(KeyError):
        home = pwd.getpwuid(os.getuid()).pw_dir
    if home is None:
        os.environ.setdefault("LOGNAME", f"uid-{os.getuid()}")
    if not os.path.isabs(os.environ.get("HOME", "")):
        override = os.environ.get("ALFINE_CACHE", "")
        os.environ["HOME"] = home or (override if os.path.isabs(override) else _private_folder(_temporary_folder()))


def _private_folder(folder: Path) -> str:
    """Creates a folder that only the user can read; a library would create it readable for everybody, and use one that
    another user has created."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _check_owner(folder)
    except OSError as error:
        raise MachineError(f"{cache_write_error(folder, error)}, and so does HOME") from None
    return str(folder)
