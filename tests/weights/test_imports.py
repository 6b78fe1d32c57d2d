"""Libraries that one source or kind of file needs are imported for it alone."""

import os
import subprocess
import sys

HEAVY = {"h5py", "safetensors", "huggingface_hub", "pooch", "requests", "torch", "keras"}


def test_the_package_is_imported_without_what_a_single_source_needs():
    code = f"import sys, jaxtl.weights; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
