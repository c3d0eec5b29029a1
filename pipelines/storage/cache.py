"""The folder that every run of a user shares: unpacked models, what a base has answered, what was measured on it."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import tempfile
from pathlib import Path

from pipelines.errors import MachineError

NAMED = "ALFINE_CACHE names another folder"


def cache_folder() -> Path:
    """ALFINE_CACHE, or the user's cache folder; without a home (a container's bare user id) a folder of that id among the
    machine's temporary ones. Raises MachineError for an ALFINE_CACHE in the home of somebody unknown."""
    from platformdirs import user_cache_path

    if named := os.environ.get("ALFINE_CACHE"):
        folder = os.path.expanduser(named)
        if folder.startswith("~"):
            raise MachineError(f"ALFINE_CACHE is {named}, and there is no such home; name a folder from the root on")
        return Path(folder)
    try:
        found = user_cache_path("alfine")
    except RuntimeError:
        return _temporary()
    # What cannot be expanded stays as it is, and would become a folder of that name right here.
    return _temporary() if str(found).startswith("~") else found


def _temporary() -> Path:
    return Path(tempfile.gettempdir()) / f"alfine-{os.getuid()}"


def cached(*parts: str) -> Path:
    """The place in the cache of something that is to be computed once. Raises MachineError where it is not there yet and
    could not be kept: before it is computed, not after."""
    place = cache_folder().joinpath(*parts)
    if not place.exists():
        _check_writable(cache_folder())
    return place


def check_cache() -> None:
    """Raises MachineError where the cache can be neither written nor read from. One that is filled and read-only will do
    for whoever needs no more than it holds, see `cached`."""
    folder = cache_folder()
    try:
        filled = any(folder.iterdir())
    except OSError:
        filled = False
    if not filled:
        _check_writable(folder)


@functools.cache
def _check_writable(folder: Path) -> None:
    """Makes the folder, and a file in it that is gone again."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _refuse_strangers(folder)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        raise MachineError(unwritable(folder, error)) from None


def unwritable(folder: Path, error: OSError) -> str:
    """The sentence about a cache folder that does not take what is written to it."""
    reason = (
        "a file is in its way"
        if isinstance(error, FileExistsError | NotADirectoryError)
        else error.strerror or str(error)
    )
    return f"the cache folder {folder} cannot be written ({reason.lower()}); {NAMED}"


def _refuse_strangers(folder: Path) -> None:
    """Among the temporary folders anybody may make one of any name, and put a model of his own into it."""
    if folder != _temporary() or os.environ.get("ALFINE_CACHE"):
        return
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(errno.EACCES, "it belongs to another user")


def settle_home() -> None:
    """For a user id that the system does not know, or without HOME, as in containers: libraries ask for a home and a name, and
    some of them end in a traceback where there is none."""
    try:
        import pwd
    except ImportError:  # Windows has a home for everybody
        return
    home = None
    with contextlib.suppress(KeyError):
        home = pwd.getpwuid(os.getuid()).pw_dir
    if home is None:
        os.environ.setdefault("LOGNAME", f"uid-{os.getuid()}")
    if not os.path.isabs(os.environ.get("HOME", "")):
        named = os.environ.get("ALFINE_CACHE", "")
        os.environ["HOME"] = home or (named if os.path.isabs(named) else _made(_temporary()))


def _made(folder: Path) -> str:
    """Libraries would make it for everybody to read, and take it from whoever has made it."""
    try:
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        _refuse_strangers(folder)
    except OSError as error:
        raise MachineError(f"{unwritable(folder, error)}, and so does HOME") from None
    return str(folder)
