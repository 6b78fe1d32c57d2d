"""What a network costs on one device: parameters, multiplications, memory and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxtl.config.phases import Phase, everything
from jaxtl.data.loader import Batch
from jaxtl.forecast.macs import count_macs
from jaxtl.models import Network, batch_statistics, split
from jaxtl.training.inference import make_predict_step
from jaxtl.training.optimizer import hyperparameters
from jaxtl.training.parallel import replicate, shard
from jaxtl.training.phase import begin_phase
from jaxtl.training.trainable import select_trainable

_FEWEST_CALLS, _MOST_CALLS, _SECONDS = 3, 100, 2.0  # to time one program


class Cost(NamedTuple):
    """What a network costs; megabytes are 1e6 bytes.

    `calls` are the number of timed calls. Memory is the sum of arguments, results and temporaries.

    Attributes:
        parameters: the number of parameters.
        macs: the multiply-adds of the inference of one image.
        weights_mb: the size of all variables, BatchNorm statistics included.
        latency_ms, latency_calls: the time of the inference of one image.
        batch_size: the images in a call of the following programs.
        inference_images_per_second, inference_calls, inference_memory_mb: the speed and the memory
            of inference.
        finetuning_images_per_second, finetuning_calls, finetuning_memory_mb: the speed and the
            memory of a training step of every parameter, with Adam.
    """

    parameters: int
    macs: int
    weights_mb: float
    latency_ms: float
    latency_calls: int
    batch_size: int
    inference_images_per_second: float
    inference_calls: int
    finetuning_images_per_second: float
    finetuning_calls: int
    inference_memory_mb: float
    finetuning_memory_mb: float


def measure(
    network: Network,
    image_size: int,
    batch_size: int,
    device: jax.Device,
    announce: Callable[[str], None] = lambda _: None,
) -> Cost:
    """Counts and measures on noise: costs depend neither on the images nor on the weights.

    The inference of one image, by which networks are compared, is timed before, between and after
    the other programs, and the fastest time counts: a machine may be busy for a while. `announce`
    takes the name of each measurement before it begins.
    """
    statistics, variables = batch_statistics(network), split(network)[1]
    announce("inference of one image")
    single, _ = _inference(network, _noise(1, image_size), device)
    times = [timed(single)]
    costs: dict[str, Any] = {}
    for name, title, build in (
        ("inference", "inference of", _inference),
        ("finetuning", "fine-tuning on", _finetuning),
    ):
        announce(f"{title} {batch_size}")
        call, memory = build(network, _noise(batch_size, image_size), device)
        seconds, calls = timed(call)
        del call  # frees the memory of its arrays
        costs[f"{name}_images_per_second"] = batch_size / seconds
        costs |= {f"{name}_calls": calls, f"{name}_memory_mb": memory / 1e6}
        times.append(timed(single))
    return Cost(
        parameters=sum(value.size for path, value in variables.items() if path not in statistics),
        macs=macs(network, image_size),
        weights_mb=sum(value.nbytes for value in variables.values()) / 1e6,
        latency_ms=1e3 * min(times)[0],
        latency_calls=min(times)[1],
        batch_size=batch_size,
        **costs,
    )


def macs(network: Network, image_size: int) -> int:
    """The multiply-adds of convolutions and matrix products in the inference of one image.

    As usual, multiplications with the padding of a feature map count; BatchNorms, activations and
    pooling do not.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
    return count_macs(jax.make_jaxpr(lambda image: network(image))(image).jaxpr)


def timed(call: Callable[[], Any]) -> tuple[float, int]:
    """Times a function: the lower quartile of its seconds, and the number of timed calls.

    Not the median: other processes can only make a call slower. A first call that does not count
    warms up. At least three calls are timed; then two seconds are enough, or a hundred calls.
    """
    call()
    seconds: list[float] = []
    while len(seconds) < _FEWEST_CALLS or (sum(seconds) < _SECONDS and len(seconds) < _MOST_CALLS):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return statistics.quantiles(seconds, n=4, method="inclusive")[0], len(seconds)


def _inference(network: Network, batch: Batch, device: jax.Device) -> tuple[Callable[[], Any], int]:
    """A call of the compiled program, and its memory."""
    graph, variables = split(network)
    variables = replicate(variables, [device])
    inputs = shard(batch.inputs, [device])
    step: Any = make_predict_step(graph, devices=[device])
    compiled = step.lower(variables, None, inputs).compile()
    return lambda: jax.block_until_ready(compiled(variables, None, inputs)), _memory(compiled)


def _finetuning(
    network: Network, batch: Batch, device: jax.Device
) -> tuple[Callable[[], Any], int]:
    phase = Phase(name="finetune", train=everything(), epochs=1)
    trainable = select_trainable(network, phase.train, phase.batch_norm)
    step: Any
    step, state, frozen, hyper = begin_phase(
        *(network, trainable, phase, split(network)[1], hyperparameters(phase, 0, 0)),
        steps_per_epoch=1,
        devices=[device],
    )
    chunk = shard(Batch(*(array[None] for array in batch)), [device], axis=1)
    given = (frozen, None, hyper, chunk)
    compiled = step.lower(state, *given).compile()

    def call() -> None:
        nonlocal state
        state, sums = compiled(state, *given)
        jax.block_until_ready((state, sums))

    return call, _memory(compiled)


def _memory(compiled: jax.stages.Compiled) -> int:
    """The bytes that a program holds at once; memory that results take from arguments once."""
    sizes: Any = compiled.memory_analysis()
    results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return sizes.argument_size_in_bytes + results + sizes.temp_size_in_bytes


def _noise(images: int, image_size: int) -> Batch:
    rng = np.random.default_rng(0)
    numbers = np.arange(images, dtype=np.int32)
    return Batch(
        inputs=rng.integers(0, 256, (images, image_size, image_size, 3), np.uint8),
        labels=numbers % 2,
        valid=np.ones(images, bool),
        indices=numbers,
        views=np.zeros_like(numbers),
    )
