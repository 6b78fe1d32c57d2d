"""The flags that set a config's keys, and how commands end."""

import pytest

from jaxtl.cli import overrides, run
from jaxtl.errors import UserError


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
    ],
)
def test_a_command_ends_with_its_code_and_one_line(capsys, command, code, last_words):
    with pytest.raises(SystemExit) as ended:
        run(command, [])
    assert ended.value.code == code
    printed = capsys.readouterr()
    assert printed.err == last_words
    assert printed.out == ""


def test_debug_shows_where_an_error_comes_from():
    with pytest.raises(UserError, match="no such thing"):
        run(raises(UserError("no such thing")), ["--debug"])


def test_an_error_that_the_user_cannot_mend_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        run(raises(ZeroDivisionError()), [])
