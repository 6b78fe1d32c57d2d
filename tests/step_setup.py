"""A training step of some phase on some devices, and batches for it."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from small_network import small_network

from jaxtl.config import Augment, Phase
from jaxtl.data.loader import Batch
from jaxtl.models import build, merge, split
from jaxtl.training.optimizer import hyperparameters, optimizer
from jaxtl.training.parallel import AXIS, replicate, shard
from jaxtl.training.step import TrainState, make_train_step
from jaxtl.training.trainable import partition, select_trainable, training_graph

SIDE, CLASSES, BATCH = 32, 7, 16
HEAD_ONLY = {"head/.*": 1.0}
MIDDLE = {"head/.*": 1.0, "(top|block_(14|16))/.*": 0.1}  # block_15 stays frozen


def make_batch(seed=0, images=BATCH, side=SIDE, view=0):
    """Coarse patterns: batch statistics of images that are all noise are rounding errors."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (BATCH, 4, 4, 3), np.uint8)
    return Batch(
        inputs=coarse.repeat(side // 4, axis=1).repeat(side // 4, axis=2),
        labels=rng.integers(0, CLASSES, BATCH).astype(np.int32),
        valid=np.arange(BATCH) < images,
        indices=np.arange(BATCH, dtype=np.int32) + BATCH * seed,
        views=np.full(BATCH, view, np.int32),
    )


def stacked(batches):
    """A chunk of batches (S, B, ...)."""
    return Batch(*map(np.stack, zip(*batches, strict=True)))


def lively(variables):
    """Variables as a trained network has them: statistics away from zero and one, and kernels that
    let the signal through (He et al. 2015, arXiv:1502.01852), where fresh ones let it fade."""
    rng = np.random.default_rng(1)
    drawn = {
        "mean": lambda shape: rng.normal(0, 0.1, shape),
        "var": lambda shape: rng.uniform(0.5, 2, shape),
        "kernel": lambda shape: rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape),
    }
    return {
        path: jnp.asarray(drawn[kind](value.shape), jnp.float32)
        if (kind := path.rpartition("/")[2]) in drawn
        else value
        for path, value in variables.items()
    }


def mobilenet_v2(**options):
    """The narrowest MobileNetV2."""
    return build("mobilenet_v2", width=0.35, **options)


class Setup:
    """A step of a phase on some devices, with the state to begin with."""

    def __init__(
        self,
        rules,
        devices,
        *,
        dropout=0.0,
        augmentation=None,
        view_seed=4,
        dtype="float32",
        cached=None,
        network=mobilenet_v2,
        fused=False,
        recomputed=False,
        **phase,
    ):
        self.devices = jax.devices()[:devices]
        self.phase = Phase(name="p", train=rules, epochs=1, **phase)
        self.network = network(num_classes=CLASSES, dropout=dropout, dtype=dtype)
        self.graph = split(self.network)[0]
        self.variables = lively(split(self.network)[1])
        self.trainable = select_trainable(self.network, rules, self.phase.batch_norm)
        self.step = make_train_step(
            training_graph(
                *(self.network, self.trainable),
                momentum=0.9,
                axis_name=AXIS,
                fused=fused,
                recomputed=recomputed,
            ),
            self.trainable,
            self.phase,
            steps_per_epoch=10,
            augmentation=augmentation or Augment(),
            cached=cached,
            devices=self.devices,
        )
        hyper = hyperparameters(self.phase, 3, view_seed)
        self.hyper = replicate(hyper, self.devices)
        self.transform = optimizer(self.phase, self.trainable, 10, hyper)
        parameters = {path: self.variables[path] for path in self.trainable.labels}
        changing, fixed = partition(self.variables, self.trainable.variables)
        state = TrainState(jnp.int32(0), changing, jax.jit(self.transform.init)(parameters))
        self.state = replicate(jax.tree.map(jnp.copy, state), self.devices)
        self.fixed = replicate(fixed, self.devices)

    def features(self, images):
        """What the frozen stages make of images."""
        run = jax.jit(lambda x: merge(self.graph, self.variables)(x, stop=self.trainable.frontier))
        return np.asarray(run(images))

    def run(self, batches, *, table=None, together=1):
        """The sums of every step, so many in one call."""
        sums = []
        for first in range(0, len(batches), together):
            chunk = shard(stacked(batches[first : first + together]), self.devices, axis=1)
            self.state, done = self.step(self.state, self.fixed, table, self.hyper, chunk)
            sums += [type(done)(*values) for values in zip(*jax.device_get(done), strict=True)]
        return sums

    def compiled(self, batch=None, *, table=None):
        """The program of one step in one call."""
        chunk = shard(stacked([make_batch() if batch is None else batch]), self.devices, axis=1)
        step = self.step.lower(self.state, self.fixed, table, self.hyper, chunk)
        return step.compile()


SmallSetup = partial(Setup, network=small_network)


def operations(compiled):
    """Floating-point operations by XLA's count, in which the body of a loop runs once."""
    cost = compiled.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]
