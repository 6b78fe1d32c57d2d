"""A disk that is full, as far as this process can tell."""

import resource
import signal
from contextlib import contextmanager


@contextmanager
def files_no_longer_than(size):
    """What a full disk does to a file that is being written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
