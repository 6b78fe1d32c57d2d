"""The exception for mistakes that a user can fix."""


class UserError(Exception):
    """Something the user can fix: a command prints it as one line and exits with code 2."""
