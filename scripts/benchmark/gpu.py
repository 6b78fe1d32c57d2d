"""Steps on the first GPU: jaxtl, and its peers in mixed precision, all with random weights.

Inference, a head alone on a network in inference mode, and everything with trained BatchNorm, in
bfloat16. The optimizer is Adam; images (B, 224, 224, 3) lie on the device. Calls are queued one
behind the other, and only the last is waited for. Each framework is imported by its class alone.
"""

from __future__ import annotations

import abc
import statistics
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmark.protocol import CLASSES, COMPILED, LEARNING_RATE, Sizes, Worker

SIDE = 224
NETWORKS = ("mobilenet_v2", "resnet50")
GOALS = {"full": 8_000, "frozen": 25_000, "head": 1_000_000}
"""Images (or features) a second of jaxtl's MobileNetV2 on an NVIDIA H100."""

FRAMEWORKS = {
    "jaxtl": "benchmark.gpu:JaxtlGpu",
    "PyTorch": "benchmark.gpu:TorchGpu",
    "Keras on JAX": "benchmark.gpu:KerasGpu",
    COMPILED: "benchmark.gpu:CompiledTorchGpu",
}
_TIMM = {"mobilenet_v2": "mobilenetv2_100", "resnet50": "resnet50"}
_KERAS = {"mobilenet_v2": "MobileNetV2", "resnet50": "ResNet50"}
_BATCH = 256
_STEPS_PER_CALL = 64  # of training on cached features


class Case(NamedTuple):
    """What is measured: `row` is `forward`, `frozen`, `full`, or `head` on cached features."""

    network: str
    row: str
    batch: int


CASES = (
    *(Case(network, "full", _BATCH) for network in NETWORKS),
    *(Case(NETWORKS[0], row, _BATCH) for row in ("frozen", "forward")),
)
"""In this order, since a lease of a GPU may end."""
HEAD = Case(NETWORKS[0], "head", 1024)
"""Of jaxtl alone: nobody else trains on cached features."""

Save = Callable[[dict[str, Any]], None]


def measure(sizes: Sizes, folder: Path, save: Save) -> list[str]:
    """Measures each framework in a process of its own, and gives each result to `save`.

    Returns:
        What failed, or was not reached before Ctrl-C.
    """
    left = [(who, case) for who in FRAMEWORKS for case in (*CASES, *[HEAD] * (who == "jaxtl"))]
    for who, target in FRAMEWORKS.items():
        environment = {"JAX_PLATFORMS": "", "CUDA_VISIBLE_DEVICES": "0", "KERAS_BACKEND": "jax"}
        try:
            with Worker(target, sizes, folder, **environment) as worker:
                if who == "jaxtl":
                    save(worker.ask("device"))
                for case in [case for other, case in left if other == who]:
                    found = worker.ask("measure", *case)
                    save({"who": who, **case._asdict(), **found})
                    left.remove((who, case))
        except KeyboardInterrupt:
            break
        except Exception:  # the other frameworks are worth as much as before
            traceback.print_exc()
    return [f"{who} {' '.join(map(str, case))}" for who, case in left]


class GpuStep(abc.ABC):
    """A framework on the first GPU, alone in a process."""

    def __init__(self, sizes: Sizes, folder: Path):
        self._sizes, self._folder = sizes._replace(image_size=SIDE), folder

    @abc.abstractmethod
    def step(self, network: str, row: str, batch: int) -> Callable[[], Any]:
        """Builds a step; a call starts it."""

    @abc.abstractmethod
    def wait(self, result: Any) -> None:
        """Returns once a result is there."""

    def measure(self, network: str, row: str, batch: int) -> dict[str, float]:
        """Images a second, and the seconds until the first two steps were done."""
        begun = time.perf_counter()
        step = self.step(network, row, batch)
        step()
        self.wait(step())
        first = time.perf_counter() - begun
        return {"per_second": batch / seconds_of(step, self.wait), "first_s": first}


def seconds_of(call: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """Of a call: the median of 5 means of 20 calls, one queued behind the other."""
    wait(call())
    seconds = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(20):
            result = call()
        wait(result)
        seconds.append((time.perf_counter() - begun) / 20)
    return statistics.median(seconds)


class JaxtlGpu(GpuStep):
    """jaxtl, as `scripts/benchmark/jaxtl_peer.py` calls it, and what the device can do at best."""

    def step(self, network: str, row: str, batch: int) -> Callable[[], Any]:
        """A training step, or inference; for `head` 64 steps of training on cached features."""
        from jaxtl.training.parallel import replicate

        peer = self._peer(network, batch)
        if row != "head":
            return peer.program(row)[0]
        training = peer.training("frozen", cached=True)
        features = len(training.state.variables["head/kernel"])
        table = np.random.default_rng(0).standard_normal((batch, features), np.float32)
        rows = np.arange(batch, dtype=np.int32)
        chunk = training.chunk(rows, batch_of(batch)[1], steps=_STEPS_PER_CALL)
        return training.train(replicate(table, training.devices), chunk)[0]

    def measure(self, network: str, row: str, batch: int) -> dict[str, float]:
        """As for all; `head` trains many batches in a call."""
        measured = super().measure(network, row, batch)
        if row == "head":
            measured["per_second"] *= _STEPS_PER_CALL
        return measured

    def device(self) -> dict[str, Any]:
        """Its name, and the most operations and bytes a second that it reaches."""
        import jax

        from benchmark.jaxtl_peer import peaks

        kind = jax.local_devices()[0].device_kind
        return {"device": kind, "peaks": peaks("bfloat16", side=8192, numbers=2**29)}

    def _peer(self, network: str, batch: int) -> Any:
        from benchmark.jaxtl_peer import JaxtlPeer
        from jaxtl.config import Model

        peer = JaxtlPeer(self._sizes._replace(batch=batch), self._folder)
        peer.model, peer.dtype = Model(name=network, weights=None, dropout=0.0), "bfloat16"
        return peer

    def wait(self, result: Any) -> None:
        """Waits for the result, which depends on all before it."""
        import jax

        jax.block_until_ready(result)


class TorchGpu(GpuStep):
    """PyTorch with timm: bfloat16 by autocast, channels_last, the fused Adam; compiled if asked."""

    compiled = False

    def step(self, network: str, row: str, batch: int) -> Callable[[], Any]:
        """A training step, or inference."""
        import timm
        import torch
        from torch import nn

        torch.backends.cudnn.benchmark = True
        model = timm.create_model(_TIMM[network], num_classes=CLASSES)
        model = model.cuda().to(memory_format=torch.channels_last).train(row == "full")
        model.requires_grad_(row == "full")
        model.get_classifier().requires_grad_(True)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, LEARNING_RATE[row], fused=True)
        pixels, numbers = batch_of(batch)
        images = torch.from_numpy(pixels).cuda().permute(0, 3, 1, 2)
        labels = torch.from_numpy(numbers).long().cuda()

        def logits(images: Any) -> Any:
            with torch.autocast("cuda", torch.bfloat16):
                return model(images.float().div(127.5).sub(1)).float()

        forward = torch.compile(logits) if self.compiled else logits

        def infer() -> Any:
            with torch.inference_mode():
                return forward(images)

        def train() -> Any:
            loss = nn.functional.cross_entropy(forward(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        return infer if row == "forward" else train

    def wait(self, result: Any) -> None:
        """Waits for all that was started."""
        import torch

        torch.cuda.synchronize()


class CompiledTorchGpu(TorchGpu):
    """The same by `torch.compile`."""

    compiled = True


class KerasGpu(GpuStep):
    """Keras on JAX, its `keras_step` jitted. Set `KERAS_BACKEND=jax` for the process."""

    def step(self, network: str, row: str, batch: int) -> Callable[[], Any]:
        """A training step, or inference."""
        import jax

        model, update, values = keras_step(network, row)
        images, labels = map(jax.device_put, batch_of(batch))
        if row == "forward":
            infer = jax.jit(lambda *given: model.stateless_call(*given, training=False)[0])
            return lambda: infer(*values[:2], images)
        jitted = jax.jit(update, donate_argnums=(0, 1, 2))

        def train() -> Any:
            nonlocal values
            values, loss = jitted(*values, images, labels)
            return loss

        return train

    def wait(self, result: Any) -> None:
        """Waits for the result, which depends on all before it."""
        import jax

        jax.block_until_ready(result)


def keras_step(
    network: str, row: str, classes: int = CLASSES
) -> tuple[Any, Callable[..., Any], list[list[Any]]]:
    """A training step of Keras on JAX: `mixed_bfloat16`, Adam, and its stateless functions.

    Returns:
        The model; the step, a function of trained variables, other variables, the optimizer's
        variables, images and labels, which returns the three anew, and the loss; and these three.
    """
    import jax
    import keras

    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    layers = keras.layers
    trunk = getattr(keras.applications, _KERAS[network])(
        input_shape=(SIDE, SIDE, 3), include_top=False, weights=None
    )
    trunk.trainable = row == "full"
    inputs = keras.Input((SIDE, SIDE, 3), dtype="uint8")
    x = trunk(layers.Rescaling(1 / 127.5, offset=-1)(inputs), training=row == "full")
    x = layers.Dense(classes, dtype="float32")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, x)
    optimizer = keras.optimizers.Adam(LEARNING_RATE[row])
    optimizer.build(model.trainable_variables)

    def loss_of(trained: Any, others: Any, images: Any, labels: Any) -> Any:
        logits, others = model.stateless_call(trained, others, images, training=True)
        losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        return losses.mean(), others

    def update(trained: Any, others: Any, state: Any, *batch: Any) -> Any:
        gradient = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), gradients = gradient(trained, others, *batch)
        trained, state = optimizer.stateless_apply(state, gradients, trained)
        return (trained, others, state), loss

    variables = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    return model, update, [[variable.value for variable in group] for group in variables]


def batch_of(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise (count, 224, 224, 3) uint8, and labels (count,) int32."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, SIDE, SIDE, 3), np.uint8)
    return images, random.integers(0, CLASSES, count, np.int32)
