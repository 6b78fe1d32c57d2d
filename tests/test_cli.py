"""The flags that set a config's keys, and how commands end."""

import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxtl.cli import COMMANDS, overrides, run
from jaxtl.console import console
from jaxtl.errors import Interrupted, UserError

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_a_flag_gives_its_value_after_an_equals_sign_or_a_space():
    assert overrides(["--cfg.data.source=photos", "--cfg.seed", "3"]) == {
        "data.source": "photos",
        "seed": "3",
    }


def test_only_the_first_equals_sign_parts_key_and_value():
    assert overrides(["--cfg.data.source=a=b"]) == {"data.source": "a=b"}


def test_a_value_may_be_empty_negative_or_hold_spaces():
    assert overrides(["--cfg.a=", "--cfg.b", "-1", "--cfg.c", "{'head/.*': 1.0}"]) == {
        "a": "",
        "b": "-1",
        "c": "{'head/.*': 1.0}",
    }


def test_the_last_of_two_flags_for_one_key_counts():
    assert overrides(["--cfg.seed=1", "--cfg.seed=2"]) == {"seed": "2"}


def test_no_flags_set_nothing():
    assert overrides([]) == {}


@pytest.mark.parametrize("given", [["--cfg.seed"], ["--cfg.seed", "--cfg.data.source=photos"]])
def test_a_flag_without_a_value_is_refused(given):
    with pytest.raises(UserError, match=r"--cfg\.seed needs a value"):
        overrides(given)


@pytest.mark.parametrize("given", ["--wrkdir=x", "photos", "--cfgs.seed=1", "-v"])
def test_anything_else_is_refused_by_name(given):
    with pytest.raises(UserError, match=given.partition("=")[0]):
        overrides([given])


def raises(error):
    def command(arguments):
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code", "last_words"),
    [
        (lambda arguments: 0, 0, ""),
        (lambda arguments: 130, 130, ""),
        (raises(UserError("no such thing")), 2, "error: no such thing\n"),
        (raises(KeyboardInterrupt()), 130, "stopped\n"),
        (raises(Interrupted()), 130, "stopped\n"),
        (raises(Interrupted(signal.SIGTERM)), 143, "stopped\n"),
        (raises(MemoryError()), 2, "error: this machine has too little memory\n"),
    ],
)
def test_a_command_ends_with_its_code_and_one_line(capsys, command, code, last_words):
    with pytest.raises(SystemExit) as ended:
        run(command, [])
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert printed.err == last_words
    assert printed.out == ""


def test_what_would_move_the_cursor_is_shown_and_not_done(capsys):
    def command(arguments):
        logging.getLogger("jaxtl").warning("left out: %s", "a\x1b[2Jb\x9b")
        console().print("cat\x1b[2J", markup=False)
        raise UserError("no class a\nerror: b\r\x7f")

    with pytest.raises(SystemExit):
        run(command, [])
    printed = capsys.readouterr()
    left_out, error = printed.err.splitlines()
    assert left_out == r"left out: a\x1b[2Jb\x9b"
    assert error == r"error: no class a\nerror: b\r\x7f"
    assert printed.out == "cat\\x1b[2J\n"


def test_debug_shows_where_an_error_comes_from():
    with pytest.raises(UserError, match="no such thing"):
        run(raises(UserError("no such thing")), ["--debug"])


def test_an_error_that_the_user_cannot_fix_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(raises(ZeroDivisionError()), [])


SHOW = "import os; print(os.environ.get('GLIBC_TUNABLES'), os.getpid())"
COMMAND = f"from jaxtl import cli; cli.run(lambda arguments: exec({SHOW!r}) or 3)"


def shown(**variables):
    """The variable and whether the process id stayed, as a command in a real process sees them."""
    inherited = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        env=inherited | variables,
        stdout=subprocess.PIPE,
        text=True,
    )
    tunables, process_id = process.communicate()[0].split()
    return tunables, int(process_id) == process.pid, process.returncode


@pytest.mark.skipif(
    not re.search(r"\[(madvise|always)\]", LARGE_PAGES.read_text() if LARGE_PAGES.exists() else ""),
    reason="this system has no transparent huge pages",
)
def test_a_command_restarts_itself_once_with_large_pages():
    arenas = f"glibc.malloc.arena_max={os.cpu_count()}"
    assert shown() == (f"glibc.malloc.hugetlb=1:{arenas}", True, 3)


def test_large_pages_are_left_to_the_user():
    assert shown(JAXTL_LARGE_PAGES="0") == ("None", True, 3)
    assert shown(GLIBC_TUNABLES="glibc.malloc.arena_max=2") == (
        "glibc.malloc.arena_max=2",
        True,
        3,
    )


def jaxtl(*arguments):
    command = [sys.executable, "-m", "jaxtl", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_help_of_jaxtl_names_every_command_and_fits_a_screen():
    done = jaxtl("--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 24
    assert all(f"  {name} " in done.stdout for name in COMMANDS)


def test_an_unknown_command_names_the_nearest():
    done = jaxtl("trian")
    assert done.returncode == 2
    assert done.stderr == "error: no command is called trian; did you mean train?\n"


def test_jaxtl_runs_a_command_with_its_flags():
    done = jaxtl("train", "--cfg", "nowhere.py")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no config nowhere.py")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example_and_imports_no_jax(name):
    command = [sys.executable, "-X", "importtime", "-m", f"jaxtl.{name}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: python -m jaxtl.{name} ")
    last = done.stdout.splitlines()[-1]
    assert last == f"example: python -m jaxtl.{name} {COMMANDS[name][1]}"
    imported = done.stderr.splitlines()
    assert [line for line in imported if not line.startswith("import time:")] == []
    loaded = {line.split("|")[-1].strip() for line in imported}
    assert "argparse" in loaded
    assert not {"jax", "numpy", "flax"} & loaded
