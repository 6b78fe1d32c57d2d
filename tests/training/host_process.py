"""One of several processes that agree on things: python host_process.py PORT PROCESSES ID FOLDER.

It prints what came of each as a line of JSON.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from jaxtl.errors import Interrupted, UserError
from jaxtl.runs.directory import RunDirectory
from jaxtl.training import hosts, shared_run
from jaxtl.training.cluster import joined

shared_run._SECONDS_FOR_A_NEW_FILE = 0.2


def failing_on(host, error):
    if jax.process_index() == host:
        raise error
    return "done"


def raised(work):
    """What a function raises, and whether all hosts know that."""
    try:
        work()
    except (Exception, Interrupted) as error:
        number = getattr(error, "errno", None) or getattr(error, "signal", None)
        return [type(error).__name__, str(error), number, hosts.is_shared(error)]
    return None


def items(count, host=None, error=None):
    """So many numbers, but for an error of one host in place of the third."""
    for number in range(count):
        if number == 2 and jax.process_index() == host:
            raise error
        yield number


def yielded(count, **options):
    """What `in_step` yields until it raises."""
    found = []
    error = raised(lambda: found.extend(n for n, _ in hosts.in_step(items(count, **options))))
    return [found, error]


def paused():
    """The items until the second host, and no other, wants to pause after the fourth."""
    taken = []

    def due():
        return jax.process_index() == 1 and made[-1] >= 3

    made = []

    def noting():
        for number in range(9):
            made.append(number)
            yield number

    for number, pause in hosts.in_step(noting(), due):
        taken.append(number)
        if pause():
            break
    return taken


def exact():
    """Bits that adding zeros, or a smaller type, would change."""
    odd = np.array([-0.0, np.nan, 1 / 3, 2.0**60], np.float64)
    big = np.arange(70_000_000, dtype=np.uint8)  # more than is sent at once
    sent = {"odd": odd, "half": jax.numpy.full(3, -0.0, jax.numpy.bfloat16), "big": big}
    got = hosts.from_first(lambda: sent)
    all_odd = hosts.gather(odd + jax.process_index())
    return [
        all(got[name].tobytes() == np.asarray(value).tobytes() for name, value in sent.items()),
        [one.tobytes() == (odd + host).tobytes() for host, one in enumerate(all_odd)],
    ]


def rows(count):
    """A table of which each host has a part."""
    part = hosts.split_up(count, jax.process_index(), jax.process_count())
    own = np.array([[i, -i] for i in part], np.float32).reshape(-1, 2)
    return hosts.concatenate(own, count).tolist()


def main(port, processes, number, folder):
    with joined(f"localhost:{port}", int(processes), int(number), Console(quiet=True)):
        own = RunDirectory(Path(folder) / f"of-{jax.process_index()}")
        common = RunDirectory(Path(folder))
        own.path.mkdir()
        results = {
            "together": hosts.together(lambda: jax.process_index()),
            "user": raised(lambda: hosts.together(lambda: failing_on(1, UserError("bad image")))),
            "system": raised(lambda: hosts.together(lambda: failing_on(1, OSError(28, "full")))),
            "both": raised(lambda: hosts.together(lambda: 1 / 0)),
            "signal": raised(lambda: hosts.together(lambda: failing_on(1, Interrupted(15)))),
            "first": hosts.from_first(lambda: [jax.process_index(), "text", None, 2.5]),
            "first fails": raised(lambda: hosts.from_first(lambda: failing_on(0, UserError("no")))),
            "any": [hosts.on_any(jax.process_index() == 1), hosts.on_any(False)],
            "exact": exact(),
            "rows": [rows(count) for count in (1, 2, 5)],
            "all": yielded(5),
            "failing": yielded(5, host=1, error=UserError("gone")),
            "stopping": yielded(3, host=1, error=Interrupted(15)),
            "paused": paused(),
            "none": yielded(0),
            "apart": raised(lambda: shared_run.check_shared(own)),
            "shared": raised(lambda: shared_run.check_shared(common)),
        }
    print("results", json.dumps(results), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
