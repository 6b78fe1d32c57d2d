"""What all commands share: flags, messages, and how they end."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import platformdirs

from jaxtl.errors import UserError


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """An argument parser for `python -m module`."""
    flags = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    flags.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return flags


def run(command: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> None:
    """Runs a command and ends the process.

    The exit code is what the command returns; 2, after one line on stderr, for what the user can
    mend; 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    _show_messages()
    keep_compiled_programs()
    try:
        code = command(arguments)
    except UserError as error:
        if "--debug" in arguments:
            raise
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except OSError as error:
        if "--debug" in arguments:
            raise
        where = f": {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        code = 130
    sys.exit(code)


def _show_messages() -> None:
    """Prints the package's messages on stderr, whatever other libraries do with logging."""
    messages = logging.getLogger("jaxtl")
    messages.addHandler(logging.StreamHandler())
    messages.setLevel(logging.INFO)
    messages.propagate = False


def keep_compiled_programs() -> None:
    """Keeps compiled programs in the user's cache directory, unless JAX was told where already."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(platformdirs.user_cache_dir("jaxtl")) / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


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
