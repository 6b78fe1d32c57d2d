"""The exceptions that end a command without a traceback, and text that a terminal can be given."""

import importlib.util
import re
import signal
from collections.abc import Sequence


class UserError(Exception):
    """Something the user can fix: a command prints it as one line and exits with code 2."""


EXPECTED = UserError, OSError, MemoryError
"""What a command says in one line; anything else is a mistake in the code, with a traceback."""


def one_line(error: BaseException) -> str:
    """What went wrong, as a command says it."""
    if isinstance(error, UserError):
        return printable(str(error))
    text = str(error).partition("\n")[0]
    if isinstance(error, OSError):
        where = f": {error.filename}" if error.filename else ""
        return printable(f"{error.strerror or text}{where}")
    if isinstance(error, MemoryError):
        return text or "this machine has too little memory"
    return f"{type(error).__name__}: {text}"


class Interrupted(KeyboardInterrupt):
    """A signal asked the command to stop: Ctrl-C, or SIGTERM from a cluster.

    Attributes:
        signal: the number of the signal.
    """

    def __init__(self, number: int = signal.SIGINT):
        super().__init__()
        self.signal = int(number)

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM: what a shell says of a process that they ended."""
        return 128 + self.signal


def printable(text: str, keep: str = "") -> str:
    """Escapes control characters, which names in a file may have: they move a terminal's cursor.

    Args:
        text: any text; surrogates stay, which stand for the bytes of a path.
        keep: control characters to leave as they are.
    """
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f]", lambda m: m[0] if m[0] in keep else repr(m[0])[1:-1], text
    )


def check_installed(name: str, needs: Sequence[str], install: str) -> None:
    """Refuses what takes packages that are not there.

    Args:
        name: what takes them.
        needs: the modules.
        install: what installs them.

    Raises:
        UserError: a module is missing; the message says what installs it.
    """
    # A folder of that name is found too, but has no origin.
    found = {module: importlib.util.find_spec(module) for module in needs}
    if missing := [module for module, spec in found.items() if spec is None or not spec.origin]:
        raise UserError(f"{name} needs {' and '.join(missing)}: {install}")
