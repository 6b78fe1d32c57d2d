"""The exception for mistakes that a user can fix, and text that a terminal can be given."""

import re


class UserError(Exception):
    """Something the user can fix: a command prints it as one line and exits with code 2."""


def printable(text: str, keep: str = "") -> str:
    """Escapes control characters, which names in a file may have: they move a terminal's cursor.

    Args:
        text: any text; surrogates stay, which stand for the bytes of a path.
        keep: control characters to leave as they are.
    """
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f]", lambda m: m[0] if m[0] in keep else repr(m[0])[1:-1], text
    )
