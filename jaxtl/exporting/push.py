"""Puts exported files into a repository on the Hugging Face hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxtl.errors import UserError, check_installed
from jaxtl.weights import hub
from jaxtl.weights.unavailable import reason, within

_ANSWER_TIMEOUT = 10.0  # seconds until the hub must have answered


def check_target(target: str) -> None:
    """Refuses what cannot be pushed to, without asking the hub.

    Args:
        target: `hf:USER/NAME`.

    Raises:
        UserError: the target is no such name, or huggingface_hub is missing.
    """
    if not hub.names_repository(target) or "@" in target:
        raise UserError(f"--push takes hf:USER/NAME, not {target}")
    check_installed("--push", ("huggingface_hub",), "pip install 'jaxtl[hf]'")


def create_repository(target: str) -> str:
    """Creates a private repository on the hub, unless it is there.

    Args:
        target: `hf:USER/NAME`.

    Returns:
        `USER/NAME`.

    Raises:
        UserError: the hub cannot be reached in time, or it does not accept the token.
    """
    name = target.removeprefix(hub.PREFIX)
    with _explaining_errors(target):
        from huggingface_hub import create_repo

        within(_ANSWER_TIMEOUT, lambda: create_repo(name, private=True, exist_ok=True))
    return name


def upload(name: str, files: Mapping[str, Path | bytes]) -> str:
    """Uploads files in one commit; what the repository has of the same names is replaced.

    Args:
        name: `USER/NAME`.
        files: paths or contents, by their names in the repository.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub cannot be reached, or refuses them.
    """
    with _explaining_errors(f"{hub.PREFIX}{name}"):
        from huggingface_hub import CommitOperationAdd, HfApi

        operations = [CommitOperationAdd(file, content) for file, content in files.items()]
        return HfApi().create_commit(
            name, operations, commit_message=f"Export {', '.join(files)} by jaxtl"
        )


@contextlib.contextmanager
def _explaining_errors(target: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # those of an HTTP library that differs between its versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            why = "the hub does not accept the token; log in by: hf auth login"
        elif status == 403:
            why = "the token may not write there; log in with another: hf auth login --force"
        else:
            why = reason(error)
        raise UserError(f"nothing was uploaded to {target}: {why}") from error
