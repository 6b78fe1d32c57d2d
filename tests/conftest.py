"""Eight simulated devices, Keras on JAX, and compiled programs that all tests share."""

import os
from pathlib import Path

import platformdirs

_CACHE = Path(platformdirs.user_cache_dir("jaxtl")) / "xla"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
