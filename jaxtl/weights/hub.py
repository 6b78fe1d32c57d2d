"""Weights from the Hugging Face hub, as timm publishes them: `hf:timm/ID`, `hf:timm/ID@REVISION`.

`huggingface_hub` does the work: its cache, its log-in and its settings (HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE) are the user's own. What its cache has is used without asking the hub.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxtl.errors import UserError
from jaxtl.models.layers import Convention
from jaxtl.weights.strict import AnotherNetwork
from jaxtl.weights.unavailable import Unavailable, reason, within

_log = logging.getLogger("jaxtl")

PREFIX = "hf:"
FILE = "model.safetensors"
"""The file of a repository that holds the weights."""

_CONFIG = "config.json"
_ANSWER_TIMEOUT = 5.0  # seconds until the hub must have answered; its own client tries for minutes
_DIGITS = 2e-3  # what may be rounded off the means and deviations of pixels 0..1 in a config


# Arguments of timm's networks that leave what they compute as it is, and the values that do.
_HARMLESS_ARGUMENTS = {"in_chans": (3,), "global_pool": ("avg", "fast"), "output_stride": (32,)}
_TRAINING_ARGUMENTS = ("drop_rate", "drop_path_rate", "drop_block_rate")


def names_repository(source: str) -> bool:
    """Whether a source is `hf:OWNER/NAME` or `hf:OWNER/NAME@REVISION`."""
    return re.fullmatch(rf"{PREFIX}[\w.-]+/[\w.-]+(@[\w./-]+)?", source) is not None


def fetch(source: str, architecture: str, convention: Convention) -> tuple[Path, str]:
    """Gets the weights of a repository, once its config has been checked.

    Args:
        source: `hf:OWNER/NAME`, or `hf:OWNER/NAME@REVISION` with a branch, a tag or a commit.
        architecture: what timm calls the network that they are for.
        convention: how the network that they are for normalises images.

    Returns:
        The path of the file in the cache of `huggingface_hub`, and the commit that it is from.

    Raises:
        Unavailable: it is not in the cache, and the hub cannot be reached or does not have it; or
            huggingface_hub is not installed.
        AnotherNetwork: they are of another network.
        UserError: they were trained on images of another normalisation or in a changed network,
            or the cache cannot be written.
    """
    # Imported here, since it reads its settings from the environment as it is imported.
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        raise Unavailable("needs another package: pip install huggingface_hub") from None

    repository, _, revision = source.removeprefix(PREFIX).partition("@")

    def checked_file(offline: bool) -> tuple[Path, str]:
        """The weights, of the same commit as the config that was checked."""
        config = hf_hub_download(
            repository, _CONFIG, revision=revision or None, local_files_only=offline
        )
        _check(source, Path(config), architecture, convention)
        commit = Path(config).parent.name  # the cache has a folder for each commit
        if not offline:
            _log.info("weights: downloading %s of %s, unless it is there", FILE, source)
        file = hf_hub_download(repository, FILE, revision=commit, local_files_only=offline)
        return Path(file), commit

    with _explaining_errors(revision):
        with contextlib.suppress(LocalEntryNotFoundError):
            return checked_file(offline=True)
        url = hf_hub_url(repository, _CONFIG, revision=revision or None)
        within(_ANSWER_TIMEOUT, lambda: get_hf_file_metadata(url, timeout=_ANSWER_TIMEOUT))
        return checked_file(offline=False)


@contextlib.contextmanager
def _explaining_errors(revision: str) -> Iterator[None]:
    """Says in a line why the hub, or its cache, does not give a file."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except UserError:
        raise
    except OfflineModeIsEnabled:
        raise Unavailable("is not in the cache, and HF_HUB_OFFLINE forbids to fetch it") from None
    except RevisionNotFoundError as error:
        raise Unavailable(f"does not have a revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise Unavailable("does not exist on the hub, or needs a log-in") from error
    except LocalEntryNotFoundError as error:
        raise Unavailable(f"could not be downloaded ({reason(error)})") from error
    except EntryNotFoundError as error:
        raise Unavailable(f"does not have both {FILE} and {_CONFIG}") from error
    except Exception as error:
        # Its errors of the network are those of an HTTP library that differs between its versions;
        # errors of the system have a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"the cache of the hub cannot be used: {error}") from error
        raise Unavailable(f"could not be reached ({reason(error)})") from error


def _check(source: str, config: Path, architecture: str, convention: Convention) -> None:
    """Refuses weights that were trained in another network, or on other images than it gets.

    A network may have the names and shapes of another and compute something else (timm's
    `resnetblur50` and `resnet50`).
    """
    text = config.read_bytes()
    try:
        whole = json.loads(text)
        theirs, trained = whole["architecture"], whole["pretrained_cfg"]
        changes = _changes(whole.get("model_args") or {})
        mean, std = (np.asarray(trained[key], float).reshape(3) for key in ("mean", "std"))
    except Exception as error:  # a list in a list in a list, an integer that no float holds, ...
        raise UserError(
            f"the {_CONFIG} of {source} does not say what network it is and how its images were "
            "normalised, as those of timm do; give the path of a file whose weights you know"
        ) from error
    if theirs != architecture:
        raise AnotherNetwork(f"{source} holds {theirs}, not {architecture}: take weights of that")
    if changes:
        raise UserError(
            f"{source} was trained in another form of {theirs}: model_args has "
            f"{', '.join(changes)}; take other weights of it"
        )
    ours = np.asarray(convention.mean) / 255, np.asarray(convention.std) / 255
    for found, wanted in zip((mean, std), ours, strict=True):
        if not np.abs(found - wanted).max() <= _DIGITS:  # which is so of NaN too
            raise UserError(
                f"{source} was trained on images with mean {_text(mean)} and deviation "
                f"{_text(std)}; the network normalises to mean {_text(ours[0])} and deviation "
                f"{_text(ours[1])}: take other weights of it"
            )


def _changes(arguments: dict[str, Any]) -> list[str]:
    """The arguments that make timm build a network that computes something else."""
    return [
        f"{name}={value!r}"
        for name, value in arguments.items()
        if name != "num_classes"  # which the shape of the head tells
        and name not in _TRAINING_ARGUMENTS
        and value not in _HARMLESS_ARGUMENTS.get(name, ())
    ]


def _text(values: np.ndarray) -> str:
    return str(tuple(np.round(values, 4).tolist()))
