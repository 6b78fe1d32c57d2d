"""Libraries that one source or kind of file needs are imported for it alone."""

import os
import subprocess
import sys

import pytest

from jaxtl.models import build
from jaxtl.weights.write import write_weights

HEAVY = {"h5py", "safetensors", "huggingface_hub", "pooch", "requests", "torch", "keras"}
HEAVY |= {"tensorflow"}


@pytest.mark.parametrize(
    ("file", "needed"),
    [(None, []), ("trunk.h5", ["h5py"]), ("trunk.safetensors", ["safetensors"])],
)
def test_a_file_is_read_without_what_others_need(file, needed, tmp_path):
    code = "from jaxtl.weights import create_model"
    if file is not None:
        convention = "keras" if file == "trunk.h5" else "torch"
        network = build("mobilenet_v2", num_classes=None, width=0.35, convention=convention)
        path = str(write_weights(network, tmp_path / file).path)
        code += f"; create_model('mobilenet_v2', weights={path!r}, width=0.35)"
    code += f"; import sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(needed)


def test_a_source_whose_package_is_not_installed_is_passed_over_and_says_what_to_install(tmp_path):
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError")
    code = "import jaxtl; jaxtl.create_model('mobilenet_v2', weights='hf:timm/mobilenetv2_100')"
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert "needs another package: pip install huggingface_hub" in done.stderr.splitlines()[-1]
