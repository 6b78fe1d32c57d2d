"""Starts several processes of one run on this machine, as many hosts would.

    python scripts/launch.py --processes 2 --devices 4 --cfg mnv2.py --workdir runs/pets

`--devices` simulates devices on CPUs; without it each process has one NVIDIA GPU, if there are any,
of `CUDA_VISIBLE_DEVICES` where that is set. All other flags are those of `python -m jaxtl.train`.
The exit code is the highest of the processes', which a signal to this one reaches too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys


def start(processes: int, devices: int | None, flags: list[str]) -> list[subprocess.Popen[bytes]]:
    """Starts all processes of a run.

    Args:
        processes: their number.
        devices: simulated devices of each; None for one GPU each, or the CPU.
        flags: the flags of `jaxtl.train`.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    variables = {}
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else list(map(str, range(processes)))
    if devices is None and len(gpus) < processes:
        sys.exit(f"error: CUDA_VISIBLE_DEVICES={given} has no GPU for each process")
    if devices is not None:
        simulated = f"--xla_force_host_platform_device_count={devices}"
        variables = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {simulated}",
        }
    command = [sys.executable, "-m", "jaxtl.train", *flags, "--coordinator", coordinator]
    return [
        subprocess.Popen(
            [*command, "--num-processes", str(processes), "--process-id", str(number)],
            env=os.environ | (variables or {"CUDA_VISIBLE_DEVICES": gpus[number]}),
            start_new_session=True,  # Ctrl-C reaches them once, from here
        )
        for number in range(processes)
    ]


def main() -> int:
    """Reads the flags, and waits for all processes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, required=True, metavar="N")
    parser.add_argument("--devices", type=int, metavar="D", help="simulated devices of each")
    given, flags = parser.parse_known_args()
    running = start(given.processes, given.devices, flags)

    def forward(number: int, frame: object) -> None:
        for process in running:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    codes = [process.wait() for process in running]
    return max(128 - code if code < 0 else code for code in codes)


if __name__ == "__main__":
    sys.exit(main())
