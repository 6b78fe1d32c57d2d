"""How many images there are, which a config may follow from."""

from typing import NamedTuple


class Counts(NamedTuple):
    """What a `get_config(counts)` may choose by.

    Attributes:
        images: the number of training images.
        classes: the number of their classes.
        batch_size: the number of images of a step.
    """

    images: int
    classes: int
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps of an epoch, the last of which may be short."""
        return -(-self.images // self.batch_size)

    @property
    def images_a_class(self) -> float:
        """The mean number of training images of a class."""
        return self.images / self.classes
