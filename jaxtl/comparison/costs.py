"""What a network costs on one device: parameters, multiplications, memory and time."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.stages import Compiled

from jaxtl.config.config_file import Augment
from jaxtl.config.phases import Phase, everything
from jaxtl.data.loader import Batch
from jaxtl.models import Network, batch_statistics, split
from jaxtl.training.optimizer import hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, replicate, shard
from jaxtl.training.step import TrainState, make_predict_step, make_train_step
from jaxtl.training.trainable import partition, select_trainable, training_graph

_CALLS, _MOST_CALLS, _FEWEST_CALLS = 5, 100, 3
_SECONDS, _MOST_SECONDS = 2.0, 10.0  # for the calls of one program


@dataclasses.dataclass(frozen=True)
class Measured:
    """A compiled program that ran.

    Attributes:
        seconds: of one call, as `timed` says.
        calls: how many were timed.
        memory: bytes of its arguments, results and temporaries together.
    """

    seconds: float
    calls: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: how many numbers can be trained.
        weight_bytes: of all that is stored of it, BatchNorm statistics included.
        macs: multiplications and additions of one image's inference, in pairs.
        batch_size: images in a call of `inference` and of `finetuning`.
        single: inference of one image.
        inference: of a batch.
        finetuning: one training step of every parameter, with Adam.
    """

    parameters: int
    weight_bytes: int
    macs: int
    batch_size: int
    single: Measured
    inference: Measured
    finetuning: Measured

    @property
    def programs(self) -> tuple[Measured, ...]:
        """All that ran."""
        return self.single, self.inference, self.finetuning


def measure(
    network: Network,
    image_size: int,
    batch_size: int,
    device: jax.Device,
    say: Callable[[str], None] = lambda _: None,
) -> Cost:
    """Counts and measures on noise: what an image shows and what the weights are costs nothing.

    The inference of one image, by which networks are compared, is timed before, between and after
    the others, and the fastest counts: a machine may be busy for a while.

    Args:
        network: with a head.
        image_size: pixels a side.
        batch_size: images in a batch.
        device: what it runs on.
        say: is told what is being done.
    """
    fixed = batch_statistics(network)
    variables = split(network)[1]
    say("inference of one image")
    one, memory = _inference(network, _noise(1, image_size), device)
    times = [timed(one)]
    say(f"inference of {batch_size}")
    batch, memory_of_batch = _inference(network, _noise(batch_size, image_size), device)
    inference = Measured(*timed(batch), memory_of_batch)
    del batch  # its arrays make room for those of training
    times.append(timed(one))
    say(f"fine-tuning on {batch_size}")
    finetuning = _finetuning(network, _noise(batch_size, image_size), device)
    times.append(timed(one))
    single = Measured(*min(times), memory)
    return Cost(
        parameters=sum(value.size for path, value in variables.items() if path not in fixed),
        weight_bytes=sum(value.nbytes for value in variables.values()),
        macs=macs(network, image_size),
        batch_size=batch_size,
        single=single,
        inference=inference,
        finetuning=finetuning,
    )


def macs(network: Network, image_size: int) -> int:
    """The multiply-adds of convolutions and matrix products in the inference of one image.

    As it is usual, those with the zeros around a feature map count, and those of BatchNorms,
    activations and pooling do not.

    Args:
        network: any.
        image_size: pixels a side.
    """
    image = jax.ShapeDtypeStruct((1, image_size, image_size, 3), np.uint8)
    return count_macs(jax.make_jaxpr(lambda image: network(image))(image).jaxpr)


def count_macs(program: Jaxpr) -> int:
    """The multiply-adds of convolutions and matrix products in a traced program.

    Of branches, the one with the most counts: where a platform has a lowering of its own, it may
    say the same without a convolution.

    Raises:
        ValueError: it loops for a time that is known when it runs.
    """
    return sum(map(_macs_of_equation, program.eqns))


def _macs_of_equation(equation: JaxprEqn) -> int:
    inner = [count_macs(program) for program in _inside(equation)]
    name, shapes = equation.primitive.name, [_shape(var) for var in equation.invars]
    results = math.prod(_shape(equation.outvars[0])) if equation.outvars else 0
    if name == "conv_general_dilated":
        filters = shapes[1][equation.params["dimension_numbers"].rhs_spec[0]]
        return results * math.prod(shapes[1]) // filters
    if name == "dot_general":
        (summed, _), _ = equation.params["dimension_numbers"]
        return results * math.prod(shapes[0][axis] for axis in summed)
    if name == "cond":
        return max(inner)
    if name == "scan":
        return sum(inner) * equation.params["length"]
    if name == "while" and any(inner):
        raise ValueError("how often a while loop runs is not known before it does")
    return sum(inner)


def _shape(value: Any) -> tuple[int, ...]:
    return getattr(value.aval, "shape", ())


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
    does not count warms up. Five calls and two seconds are enough, or a hundred calls; after ten
    seconds so are three.
    """
    call()
    seconds: list[float] = []
    while not _enough(seconds):
        begun = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begun)
    return statistics.quantiles(seconds, n=4, method="inclusive")[0], len(seconds)


def _enough(seconds: list[float]) -> bool:
    spent, calls = sum(seconds), len(seconds)
    if spent >= _MOST_SECONDS:
        return calls >= _FEWEST_CALLS
    return calls >= (_CALLS if spent >= _SECONDS else _MOST_CALLS)


def _inference(network: Network, batch: Batch, device: jax.Device) -> tuple[Callable[[], Any], int]:
    """A call of the compiled program, and its memory."""
    graph, variables = split(network)
    variables = replicate(variables, [device])
    inputs = shard(batch.inputs, [device])
    step: Any = make_predict_step(graph, devices=[device])
    compiled = step.lower(variables, None, inputs).compile()
    return lambda: jax.block_until_ready(compiled(variables, None, inputs)), _memory(compiled)


def _finetuning(network: Network, batch: Batch, device: jax.Device) -> Measured:
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
    state, fixed, hyper = replicate(
        (TrainState(jnp.int32(0), copies, moments), fixed, hyper), [device]
    )
    chunk = shard(Batch(*(array[None] for array in batch)), [device], axis=1)
    compiled = step.lower(state, fixed, None, hyper, chunk).compile()

    def call() -> None:
        nonlocal state
        state, sums = compiled(state, fixed, None, hyper, chunk)
        jax.block_until_ready((state, sums))

    seconds, calls = timed(call)
    return Measured(seconds, calls, _memory(compiled))


def _memory(compiled: Compiled) -> int:
    """What a program holds at once; results that take the place of arguments count once."""
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
