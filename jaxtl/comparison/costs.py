"""What a network costs on one device: parameters, multiplications, memory and time."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from jaxtl.config.config_file import Augment
from jaxtl.config.phases import Phase, everything
from jaxtl.data.loader import Batch
from jaxtl.models import Network, batch_statistics, split
from jaxtl.training.optimizer import hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, replicate, shard
from jaxtl.training.step import TrainState, make_predict_step, make_train_step
from jaxtl.training.trainable import partition, select_trainable, training_graph

_FEWEST_CALLS, _MOST_CALLS, _SECONDS = 3, 100, 2.0  # to time one program


class Cost(NamedTuple):
    """What a network costs; megabytes are 1e6 bytes.

    Attributes:
        parameters: how many numbers can be trained.
        macs: multiplications and additions of one image's inference, in pairs.
        weights_mb: all that is stored of it, BatchNorm statistics included.
        latency_ms, latency_calls: of the inference of one image, and how often it was timed.
        batch_size: images in a call of the following.
        inference_images_per_second, inference_calls, inference_memory_mb: of inference.
        finetuning_images_per_second, finetuning_calls, finetuning_memory_mb: of a training step of
            every parameter, with Adam. Memory is that of arguments, results and temporaries.
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
    say: Callable[[str], None] = lambda _: None,
) -> Cost:
    """Counts and measures on noise: what an image shows and what the weights are costs nothing.

    The inference of one image, by which networks are compared, is timed before, between and after
    the others, and the fastest counts: a machine may be busy for a while. `say` is told what is
    being done.
    """
    fixed, variables = batch_statistics(network), split(network)[1]
    say("inference of one image")
    single, _ = _inference(network, _noise(1, image_size), device)
    times = [timed(single)]
    say(f"inference of {batch_size}")
    call, inference_memory = _inference(network, _noise(batch_size, image_size), device)
    inference_seconds, inference_calls = timed(call)
    del call  # its arrays make room for those of training
    times.append(timed(single))
    say(f"fine-tuning on {batch_size}")
    call, finetuning_memory = _finetuning(network, _noise(batch_size, image_size), device)
    finetuning_seconds, finetuning_calls = timed(call)
    del call
    times.append(timed(single))
    return Cost(
        parameters=sum(value.size for path, value in variables.items() if path not in fixed),
        macs=macs(network, image_size),
        weights_mb=sum(value.nbytes for value in variables.values()) / 1e6,
        latency_ms=1e3 * min(times)[0],
        latency_calls=min(times)[1],
        batch_size=batch_size,
        inference_images_per_second=batch_size / inference_seconds,
        inference_calls=inference_calls,
        finetuning_images_per_second=batch_size / finetuning_seconds,
        finetuning_calls=finetuning_calls,
        inference_memory_mb=inference_memory / 1e6,
        finetuning_memory_mb=finetuning_memory / 1e6,
    )


def macs(network: Network, image_size: int) -> int:
    """The multiply-adds of convolutions and matrix products in the inference of one image.

    As it is usual, those with the zeros around a feature map count, and those of BatchNorms,
    activations and pooling do not.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
    return count_macs(jax.make_jaxpr(lambda image: network(image))(image).jaxpr)


def count_macs(program: Jaxpr) -> int:
    """The multiply-adds of convolutions and matrix products in a traced program.

    Of branches, the one with the most counts: where a platform has a lowering of its own, it may
    say the same without a convolution.

    Raises:
        ValueError: it has a loop whose length is known only when it runs.
    """
    return sum(map(_macs_of_equation, program.eqns))


def _macs_of_equation(equation: JaxprEqn) -> int:
    inner = [count_macs(program) for program in _inside(equation)]
    name, inputs = equation.primitive.name, [getattr(v.aval, "shape", ()) for v in equation.invars]
    results = sum(getattr(v.aval, "size", 0) for v in equation.outvars)
    if name == "conv_general_dilated":
        filters = inputs[1][equation.params["dimension_numbers"].rhs_spec[0]]
        return results * math.prod(inputs[1]) // filters
    if name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        return results * math.prod(inputs[0][axis] for axis in summed)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("how often a while loop runs is not known before it does")
    return sum(inner) * (equation.params["length"] if name == "scan" else 1)


def _inside(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for program in value if isinstance(value, tuple | list) else (value,):
            if isinstance(program, ClosedJaxpr):
                yield program.jaxpr
            elif isinstance(program, Jaxpr):
                yield program


def timed(call: Callable[[], Any]) -> tuple[float, int]:
    """The lower quartile of the seconds that a call takes, and of how many calls that is.

    Not the median: whatever else runs on a machine can only make a call slower. A first call that
    does not count warms up. Three calls and two seconds are enough, or a hundred calls.
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
    step: Any = make_train_step(
        training_graph(network, trainable, momentum=0.0, axis_name=AXIS),
        trainable,
        phase,
        steps_per_epoch=1,
        augmentation=Augment(),
        cached=None,
        devices=[device],
    )
    trained, fixed = partition(split(network)[1], trainable.multipliers)
    hyper = hyperparameters(phase, 0, 0)
    moments = jax.jit(optimizer(phase, trainable, 1, hyper).init)(trained)
    copies = jax.tree.map(jnp.copy, trained)  # a step takes them for its own
    state, *given = replicate(
        (TrainState(jnp.int32(0), copies, moments), fixed, None, hyper), [device]
    )
    given.append(shard(Batch(*(array[None] for array in batch)), [device], axis=1))
    compiled = step.lower(state, *given).compile()

    def call() -> None:
        nonlocal state
        state, sums = compiled(state, *given)
        jax.block_until_ready((state, sums))

    return call, _memory(compiled)


def _memory(compiled: jax.stages.Compiled) -> int:
    """The bytes that a program holds at once; results in the place of arguments count once."""
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
