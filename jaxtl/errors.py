"""The exception for mistakes that a user can mend."""


class UserError(Exception):
    """Something the user can mend: a command prints it as one line and exits with code 2."""
