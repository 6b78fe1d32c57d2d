"""A network is a chain of named stages that can be entered and left anywhere."""

from __future__ import annotations

from collections.abc import Mapping

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxtl.models.layers import Context

INFERENCE = Context()
"""No keys, no padding: dropout is off and every picture counts."""

Variables = dict[str, jax.Array]
"""Parameters and BatchNorm statistics by path, such as `block_14/expand/kernel`."""


class Network(nnx.Module):
    """A chain of named stages, from RGB pictures to logits or pooled features.

    Attributes:
        name: the network's name in the registry.
        width: the multiplier of its channel counts.
        num_classes: how many logits it returns; None for pooled features.
        stage_names: the stages, in order.
    """

    def __init__(
        self, stages: Mapping[str, nnx.Module], *, name: str, width: float, num_classes: int | None
    ):
        self.name = name
        self.width = width
        self.num_classes = num_classes
        self.stage_names = tuple(stages)
        for stage, module in stages.items():
            setattr(self, stage, module)

    def __call__(
        self,
        x: Array,
        *,
        start: str | None = None,
        stop: str | None = None,
        context: Context = INFERENCE,
    ) -> Float[Array, "batch *features"]:
        """Runs the stages from `start` up to, but not including, `stop`.

        Args:
            x: pictures (B, H, W, 3), RGB, 0..255, uint8 or float; or, with `start`, what the stage
                before it returned.
            start: the first stage to run; None for the whole chain's first.
            stop: the stage to stop before; None to run to the end.
            context: keys and padding of the batch; the default is inference.

        Returns:
            What the last stage run returns: logits or pooled features (B, F) at the end of the
            chain, float32.
        """
        for stage in self.between(start, stop):
            x = getattr(self, stage)(x, context)
        return x

    def compute_in(self, dtype: str) -> None:
        """Sets the type of the feature maps: `float32` or `bfloat16`."""
        getattr(self, self.stage_names[0]).dtype = dtype

    def between(self, start: str | None, stop: str | None) -> tuple[str, ...]:
        """The names of the stages from `start` up to, but not including, `stop`."""
        first = 0 if start is None else self.stage_names.index(start)
        last = len(self.stage_names) if stop is None else self.stage_names.index(stop)
        return self.stage_names[first:last]


def split(network: Network) -> tuple[nnx.GraphDef, Variables]:
    """Takes a network apart into its static structure and its variables by path."""
    graph, state = nnx.split(network)
    return graph, {"/".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


def merge(graph: nnx.GraphDef, variables: Variables) -> Network:
    """Puts a network together; the inverse of `split`.

    Inside a traced function the network belongs to that trace: gradients can be taken through it.
    """
    flat: dict = {tuple(path.split("/")): value for path, value in variables.items()}
    return nnx.merge(graph, nnx.from_flat_state(flat))


def statistics(network: Network) -> frozenset[str]:
    """The paths of the BatchNorm statistics, which no gradient moves."""
    state = nnx.state(network, nnx.BatchStat)
    return frozenset("/".join(map(str, path)) for path, _ in nnx.to_flat_state(state))
