"""What commands share: flags, exit codes, and the environment to set before jax is imported."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import difflib
import io
import logging
import os
import platform
import runpy
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs

from jaxtl.errors import EXPECTED, Interrupted, UserError, check_installed, one_line, printable

_MOST_BYTES_OF_PROGRAMS = 2 * 10**9
_TRACKERS = ("wandb", "mlflow")  # those of `jaxtl.runs.trackers`, which imports jax

COMMANDS = {
    "train": (
        "fine-tune an image classifier",
        "--cfg mnv2.py --cfg.data.source=images --workdir runs/pets",
    ),
    "evaluate": ("measure a trained run", "--run runs/pets --data more-images"),
    "report": ("draw the page of a run, or compare runs", "runs/a runs/b --to compared.html"),
    "predict": (
        "classify images with a trained run",
        "--run runs/pets new.jpg folder/ --format csv",
    ),
    "sweep": ("train the variations of a config", "--cfg sweep_heads.py --workdir runs/heads"),
    "lr_find": ("find a learning rate", "--cfg mnv2.py --phase head"),
    "compare": ("measure networks on your own images", "--data images --budget ms=20"),
    "check": ("find bad, leaked and duplicate images", "--data images"),
    "export": ("write a run as one file for other runtimes", "--run runs/pets --to pets.onnx"),
    "pack": ("pack images into a few large files", "images packed/images --size 256"),
    "convert": ("write weights as a file for Keras or timm", "--from runs/pets --to pets.h5"),
}
"""What each command does, and the flags in the example that its `--help` ends with."""


def main() -> None:
    """The console script `jaxtl`, and `python -m jaxtl`: `jaxtl NAME` is `python -m jaxtl.NAME`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    name = name if name.startswith("-") else name.replace("-", "_")
    if name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"jaxtl.{name}", run_name="__main__", alter_sys=True)
    elif name in ("-h", "--help"):
        print("usage: jaxtl COMMAND [...]\n")
        print("\n".join(f"  {command:<10}{text}" for command, (text, _) in COMMANDS.items()))
        print("\n`jaxtl COMMAND --help` has the flags and an example.")
    else:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: no command is called {printable(name)}; {hint}", file=sys.stderr)
        sys.exit(2)


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """An argument parser for `python -m module`, whose help ends with an example."""
    _, example = COMMANDS[module.rpartition(".")[2]]
    flags = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        epilog=f"example: python -m {module} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return flags


def add_tta(flags: argparse.ArgumentParser) -> None:
    """Adds `--tta`."""
    text = "average the probabilities of each image and of its mirror images"
    flags.add_argument("--tta", action="store_true", help=text)


def add_trackers(flags: argparse.ArgumentParser) -> None:
    """Adds `--track`, which refuses a tracker whose package is not installed."""

    def installed(name: str) -> str:
        if name in _TRACKERS:
            check_installed("--track", (name,), f"pip install 'jaxtl[{name}]'")
        return name

    text = "send the metrics there too; may be given twice"
    flags.add_argument(
        "--track", type=installed, action="append", default=[], choices=_TRACKERS, help=text
    )


def add_processes(flags: argparse.ArgumentParser) -> None:
    """Adds the flags of a command that can be one of several processes."""
    several = flags.add_argument_group(
        "several hosts", "one process on each; not needed in a cluster that JAX detects, as SLURM"
    )
    several.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where the process number 0 can be reached"
    )
    several.add_argument("--num-processes", type=int, metavar="N", help="the number of processes")
    several.add_argument("--process-id", type=int, metavar="I", help="the number of this one")


def run(command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process.

    The exit code is what the command returns; 2, after one line on stderr, for mistakes that the
    user can fix and for faults of the machine; 130 after Ctrl-C, 143 after SIGTERM.

    Args:
        command: takes the arguments; imports jax only once it runs.
        arguments: None for those of the process.
    """
    whole_process = arguments is None
    if arguments is None:
        use_large_pages()
        arguments = sys.argv[1:]
        _stop_on_signals()
        sys.unraisablehook = _print_unraisable
        # Orbax leaves these behind where a checkpoint cannot be written.
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    _show_messages()
    keep_compiled_programs()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="jaxtl")
    try:
        code = command(arguments)
    except EXPECTED as error:
        if "--debug" in arguments:
            raise
        print(f"error: {printable(one_line(error))}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt as error:
        print("stopped", file=sys.stderr)
        code = error.exit_code if isinstance(error, Interrupted) else 130
    if whole_process and code:
        # At once: threads of Orbax wait five minutes for a checkpoint that could not be written.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


class _Stopped(Interrupted):
    """What the handlers of `_stop_on_signals` raise."""


def _print_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Prints as Python does, but leaves out what TensorStore and asyncio say once more of a
    checkpoint that could not be written, or of a file that could not be opened.

    Where a signal came in a finalizer or a callback of the garbage collector, Python ignores what
    its handler raised. So the signal comes once more.
    """
    if isinstance(unraisable.exc_value, _Stopped):
        _stop_on_signals()
        again = threading.Timer(0.1, os.kill, (os.getpid(), unraisable.exc_value.signal))
        again.daemon = True
        again.start()
        return
    said = str(unraisable.exc_value)
    if said != "Event loop is closed" and "no attribute '_ssock'" not in said:
        sys.__unraisablehook__(unraisable)


def _stop_on_signals() -> None:
    """Lets SIGTERM end this process as Ctrl-C does; a second signal ends it at once."""
    numbers = signal.SIGINT, signal.SIGTERM

    def stop(number: int, frame: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        raise _Stopped(number)

    for number in numbers:
        signal.signal(number, stop)


def _as_bytes_or_escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Writes paths as their bytes, and escapes letters that the terminal cannot show."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error("jaxtl", _as_bytes_or_escaped)


def use_large_pages() -> None:
    """Starts this process again, once, with an allocator that takes memory in large pages.

    Training a whole network on a CPU is bound by page faults otherwise
    (docs/decisions/0009-speed-of-a-training-step-on-a-cpu.md). Only on Linux with glibc, where
    transparent huge pages are on or can be asked for; not where `GLIBC_TUNABLES` is set, another
    allocator is preloaded, or `JAXTL_LARGE_PAGES=0`. The process keeps its id. On a machine with
    an accelerator only the host's memory is concerned.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        return
    refused = os.environ.get("JAXTL_LARGE_PAGES") == "0"
    if refused or "GLIBC_TUNABLES" in os.environ or "LD_PRELOAD" in os.environ:
        return
    try:
        enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return
    if "[madvise]" in enabled or "[always]" in enabled:
        # As many arenas as cores: with one for each thread, threads that decode images keep more.
        arenas = f"glibc.malloc.arena_max={os.cpu_count() or 1}"
        tunables = {"GLIBC_TUNABLES": f"glibc.malloc.hugetlb=1:{arenas}"}
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | tunables)


class _OneLine(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(super().formatMessage(record))


_handler = logging.StreamHandler()
_handler.setFormatter(_OneLine())


def _show_messages() -> None:
    """Prints the package's messages on stderr, whatever other libraries do with logging."""
    messages = logging.getLogger("jaxtl")
    _handler.stream = sys.stderr  # which may be another one than in the last call
    messages.addHandler(_handler)
    messages.setLevel(logging.INFO)
    messages.propagate = False


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache directory, unless the user named another one.

    JAX removes those used longest ago when they take more than 2 GB, or the number of bytes in the
    variable `JAX_COMPILATION_CACHE_MAX_SIZE`.

    JAX reads these variables when it is imported; if it was imported before, it is told directly.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(platformdirs.user_cache_dir("jaxtl")) / "xla"
        settings = {
            "jax_compilation_cache_dir": str(folder),
            "jax_persistent_cache_min_compile_time_secs": 0.3,
        }
        if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
            settings["jax_compilation_cache_max_size"] = _MOST_BYTES_OF_PROGRAMS
        for name, value in settings.items():
            os.environ[name.upper()] = str(value)
            if "jax" in sys.modules:
                sys.modules["jax"].config.update(name, value)
        with contextlib.suppress(OSError):
            _add_missing_times(folder)


def _add_missing_times(folder: Path) -> None:
    """Gives programs a time of their last use that have none.

    Those of jaxtl 0.2 have none, and one whose writer was killed. JAX 0.10 removes no program, and
    keeps no new one, where one has none. An empty file stands for a long time ago.
    """
    for program in folder.glob("*-cache"):
        used = program.with_name(f"{program.name.removesuffix('-cache')}-atime")
        if not used.exists():
            used.touch()


def overrides(unknown: Sequence[str]) -> dict[str, str]:
    """Reads the `--cfg.a.b=value` flags that argparse left over.

    Raises:
        UserError: a flag is not of that form.
    """
    values: dict[str, str] = {}
    rest = list(unknown)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--cfg."):
            raise UserError(f"no flag is called {flag}; see --help")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{flag} needs a value: {flag}=...")
            value = rest.pop(0)
        values[flag.removeprefix("--cfg.")] = value
    return values
