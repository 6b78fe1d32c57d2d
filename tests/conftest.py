"""Eight simulated devices, Keras on JAX, and compiled programs that all tests share."""

import ctypes
import gc
import logging
import os
import sys
from pathlib import Path

import jaxtyping
import platformdirs
import pytest

_CACHE = Path(platformdirs.user_cache_dir("jaxtl"))
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

sys.path.insert(0, str(Path(__file__).parent))  # lets the tests here import what lies beside them

# The annotations of jaxtl hold at run time, shapes and types of arrays included.
jaxtyping.install_import_hook("jaxtl", "type_checker.checked")


def pytest_configure(config):
    """The quick tests compile more than they compute."""
    if config.getoption("markexpr") == "not slow":
        os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Undoes what a command does to the package's messages, in a test or a fixture: it prints them
    on a stderr that is closed when the test ends."""
    messages = logging.getLogger("jaxtl")
    before = messages.handlers[:], messages.level, messages.propagate
    try:
        return (yield)
    finally:
        messages.handlers[:], messages.level, messages.propagate = before


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The user's cache directory for all tests and their processes: downloaded weights are the
    user's, activations are not."""
    home = tmp_path_factory.mktemp("cache")
    (home / "jaxtl").mkdir()
    (_CACHE / "weights").mkdir(parents=True, exist_ok=True)
    (home / "jaxtl" / "weights").symlink_to(_CACHE / "weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home


@pytest.fixture(scope="module")
def small():
    """Lets configs name the network `small` of `small_network.py`."""
    from small_network import SMALL

    from jaxtl.models import REGISTRY

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(REGISTRY, "small", SMALL)
        yield


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """What a module compiled goes with it: programs may hold the weights of whole networks, and
    the allocator would keep half a gigabyte that compiling took."""
    yield
    import jax  # after the variables above are set

    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc's
