"""How many images there are, which a config may follow from."""

from typing import NamedTuple


class Counts(NamedTuple):
    """What a `get_config(counts)` may choose by.

    Attributes:
        images: the number of training images.
        classes: the number of their classes.
    """

    images: int
    classes: int

    @property
    def images_a_class(self) -> float:
        """The mean number of training images of a class."""
        return self.images / self.classes
