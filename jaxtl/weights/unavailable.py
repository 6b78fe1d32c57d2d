"""The exceptions of weights that cannot be had."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtl.errors import UserError


class Unavailable(Exception):
    """A source cannot be had; the text follows its name: `could not be reached (...)`."""


class NoWeights(UserError):
    """No source can be had.

    Attributes:
        reasons: why, for each of them.
    """

    def __init__(self, reasons: Sequence[str]):
        super().__init__(
            f"no weights can be had: {'; '.join(reasons)}; name a file, such as path/to/file.h5"
        )
        self.reasons = tuple(reasons)
