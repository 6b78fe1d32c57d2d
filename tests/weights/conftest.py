"""Keras is the reference here; its backend must be chosen before anything imports it."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")
