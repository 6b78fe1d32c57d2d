"""The exceptions that end a command without a traceback, and text that a terminal can be given."""

import re
import signal


class UserError(Exception):
    """Something the user can fix: a command prints it as one line and exits with code 2."""


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
