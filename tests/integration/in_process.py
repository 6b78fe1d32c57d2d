"""Training a small network in this process, on eight devices, with all that is to be seen of it."""

import io
import traceback

import jax
import pytest
from rich.console import Console
from workplace import measurements

from jaxtl.config.config_file import load
from jaxtl.training.setup import open_data, train

_COMPILED = [0]


def _count(event, seconds, **names):
    """Counts the programs that XLA compiles or fetches to train and to validate.

    Checkpoints and the page of a run need small ones of their own.
    """
    if event == "/jax/core/compile/backend_compile_duration":
        callers = {frame.name for frame in traceback.extract_stack()}
        _COMPILED[0] += callers.isdisjoint({"_save", "write_page", "_plan"})


jax.monitoring.register_event_duration_secs_listener(_count)


class _Terminal(io.StringIO):
    """Notes how many programs were compiled before each line."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def write(self, text):
        self.lines += [(line, _COMPILED[0]) for line in text.splitlines()]
        return super().write(text)


class Run:
    """A run of `tiny.py` with the network `small`, in batches of 16.

    Attributes:
        path: its directory.
        home: the cache directory.
        result: its validation.
        lines: what it said, line by line, with the number of programs that were compiled before.
    """

    def __init__(self, workplace, folder, home, flags, phases):
        place = {
            "data.source": str(workplace.path / "data"),
            "model.name": "small",
            "model.width": "1",
            "model.weights": str(workplace.path / "small.h5"),
            "data.batch_size": "16",
        }
        config = load(str(workplace.path / "tiny.py"), place | flags)
        config = config.model_copy(update={"phases": config.phases[:phases]})
        self.path, self.home = folder, home
        terminal = _Terminal()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(home))
            self.result = train(
                config, open_data(config), folder, Console(file=terminal, width=300)
            )
        self.lines = terminal.lines

    @property
    def said(self):
        """All that it said."""
        return "\n".join(line for line, _ in self.lines)

    @property
    def losses(self):
        """Of training and validation by turns, epoch by epoch."""
        return [line["loss"] for line in measurements(self.path)]

    @property
    def caches(self):
        """The files of activations, each with what changes when it is written again."""
        files = sorted((self.home / "jaxtl" / "activations").rglob("rows.bin"))
        stats = [(file, file.stat()) for file in files]
        return [(str(file), stat.st_ino, stat.st_mtime_ns, stat.st_size) for file, stat in stats]
