"""Full training steps, compiled for accelerators that are not there: jaxtl, and Keras on JAX.

Everything trains, BatchNorm included, in bfloat16 with Adam on images of 224 pixels and 1,000
classes. Nothing runs: the compilers tell what a step moves and keeps, and both frameworks are
counted by the same functions.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmark.gpu import NETWORKS, SIDE, keras_step
from benchmark.protocol import Worker

FRAMEWORKS = ("jaxtl", "Keras on JAX")
AT_MOST, HOPED = 0.8, 0.65
"""The goals: jaxtl's bytes an image as a fraction of Keras'; its temporaries are at most Keras'."""
_CLASSES = 1000


class Case(NamedTuple):
    """Accelerators, by the name that `--compile-for` takes, and the images on each."""

    target: str
    each: int


CASES = {"tpu-compiler": Case("tpu:v5e-8", 128), "gpu-compiler": Case("gpu:h100x1", 256)}
"""By `--device`."""


def measure(device: str, save: Callable[[dict[str, Any]], None]) -> list[str]:
    """Compiles each step in a process of its own, and gives each result to `save`.

    Returns:
        What failed, or was not reached before Ctrl-C.
    """
    left = [(who, network) for network in NETWORKS for who in FRAMEWORKS]
    for who, network in left[:]:
        environment = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
        try:
            with Worker("benchmark.compilers:Compiler", **environment) as worker:
                found = worker.ask("program", who, network, *CASES[device])
        except KeyboardInterrupt:
            break
        except Exception:  # the other steps are worth as much as before
            traceback.print_exc()
            continue
        save({"who": who, "network": network, "each": CASES[device].each, **found})
        left.remove((who, network))
    return [f"{who} {network}" for who, network in left]


class Compiler:
    """A process that compiles for accelerators."""

    def __init__(self) -> None:
        from jaxtl.forecast.target import prepare_environment

        prepare_environment()

    def program(self, who: str, network: str, name: str, each: int) -> dict[str, int]:
        """What a step of a framework costs on each device, a `jaxtl.forecast` `Program`."""
        from jaxtl.forecast.target import target

        build = {"jaxtl": _jaxtl, "Keras on JAX": _keras}[who]
        return dataclasses.asdict(build(network, target(name), each))


def _jaxtl(network: str, described: Any, each: int) -> Any:
    from jaxtl.config import Config, Data, Model, Phase, everything
    from jaxtl.training.forecast import training_programs

    config = Config(
        model=Model(name=network, weights=None, dropout=0.0),
        data=Data(source="digits", batch_size=each * described.count),
        phases=(Phase(name="full", train=everything(), epochs=1, batch_norm="train"),),
        dtype="bfloat16",
    )
    (program,) = training_programs(config, described, classes=_CLASSES, train_images=1_000_000)
    return program


def _keras(network: str, described: Any, each: int) -> Any:
    import jax
    import numpy as np

    from jaxtl.forecast.program import compile_program
    from jaxtl.forecast.target import check_compiler, devices
    from jaxtl.training.parallel import abstract

    check_compiler(described)
    on = devices(described)
    _, update, values = keras_step(network, "full", _CLASSES)
    images = each * described.count
    batch = (
        jax.ShapeDtypeStruct((images, SIDE, SIDE, 3), np.uint8),
        jax.ShapeDtypeStruct((images,), np.int32),
    )
    step = jax.jit(update, donate_argnums=(0, 1, 2))
    program = compile_program(step, *abstract(values, on), *abstract(batch, on, sharded=True))
    # This step is written for the whole batch, and the compiler parts it.
    return dataclasses.replace(program, operations=program.operations // described.count)
