"""The exception that lets the next source of weights be tried."""


class Unavailable(Exception):
    """A source cannot be had; the text follows its name: `could not be reached (...)`."""
