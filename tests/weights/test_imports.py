"""Libraries that one source or kind of file needs are imported for it alone."""

import subprocess
import sys

HEAVY = {"h5py", "safetensors", "huggingface_hub", "pooch", "requests", "torch", "keras"}


def test_the_package_is_imported_without_what_a_single_source_needs():
    code = f"import sys, jaxtl.weights; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
