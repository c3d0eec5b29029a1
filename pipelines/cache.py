"""The folder that every run of a user shares: unpacked models, what a base has answered, what was measured on it."""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from pathlib import Path

from pipelines.errors import MachineError

NAMED = "ALFINE_CACHE names another folder"


def cache_folder() -> Path:
    """ALFINE_CACHE, or the user's cache folder; without a home (a container's bare user id) a folder of that id among the
    machine's temporary ones."""
    from platformdirs import user_cache_path

    named = os.environ.get("ALFINE_CACHE")
    folder = Path(os.path.expanduser(named)) if named else user_cache_path("alfine")
    # What cannot be expanded stays as it is, and would become a folder of that name right here.
    return Path(tempfile.gettempdir()) / f"alfine-{os.getuid()}" if str(folder).startswith("~") else folder


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
    reason = "a file is in its way" if isinstance(error, FileExistsError | NotADirectoryError) else error.strerror or str(error)
    return f"the cache folder {folder} cannot be written ({reason.lower()}); {NAMED}"


def _refuse_strangers(folder: Path) -> None:
    """Among the temporary folders anybody may make one of any name, and put a model of his own into it."""
    if os.environ.get("ALFINE_CACHE") or folder.parent != Path(tempfile.gettempdir()):
        return
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(13, "it belongs to another user")


def settle_home() -> None:
    """For a user id that the system does not know, without HOME, as in containers: libraries ask for a home and a name, and
    some of them end in a traceback where there is none."""
    try:
        import pwd

        pwd.getpwuid(os.getuid())
    except ImportError:  # Windows has a home for everybody
        return
    except KeyError:
        os.environ.setdefault("LOGNAME", f"uid-{os.getuid()}")
        if not os.environ.get("HOME"):
            os.environ["HOME"] = str(cache_folder())
