"""Weights from the Hugging Face hub, as timm publishes them: `hf:timm/ID`.

`huggingface_hub` does the work: its cache, its log-in and its settings (HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE) are the user's own. What its cache has is used without asking the hub.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import numpy as np

from jaxtl.errors import UserError
from jaxtl.models.layers import Convention
from jaxtl.weights.download import within
from jaxtl.weights.strict import AnotherNetwork
from jaxtl.weights.unavailable import Unavailable

_log = logging.getLogger("jaxtl")

PREFIX = "hf:"
FILE = "model.safetensors"
"""The file of a repository that holds the weights."""

_CONFIG = "config.json"
_ANSWER_TIMEOUT = 5.0  # seconds until the hub must have answered; its own client tries for minutes
_DIGITS = 2e-3  # what may be rounded off the means and deviations of pixels 0..1 in a config


def names_repository(source: str) -> bool:
    """Whether a source is `hf:OWNER/NAME`."""
    return re.fullmatch(rf"{PREFIX}[\w.-]+/[\w.-]+", source) is not None


def fetch(source: str, architecture: str, convention: Convention) -> Path:
    """Gets the weights of a repository, once what it says of their images has been checked.

    Args:
        source: `hf:OWNER/NAME`.
        architecture: what timm calls the network that they are for.
        convention: how the network that they are for normalises images.

    Returns:
        The path of the file in the cache of `huggingface_hub`.

    Raises:
        Unavailable: it is not in the cache, and the hub cannot be reached or does not have it.
        AnotherNetwork: they are of another network.
        UserError: they were trained on images of another normalisation, or the cache cannot be
            written.
    """
    # Imported here, since it reads its settings from the environment as it is imported.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    repository = source.removeprefix(PREFIX)

    def cached(file: str) -> Path:
        return Path(hf_hub_download(repository, file, local_files_only=True))

    def downloaded(file: str) -> Path:
        return Path(hf_hub_download(repository, file))

    try:
        try:
            _check(source, cached(_CONFIG), architecture, convention)
            return cached(FILE)
        except LocalEntryNotFoundError:
            pass
        url = hf_hub_url(repository, _CONFIG)
        within(_ANSWER_TIMEOUT, lambda: get_hf_file_metadata(url, timeout=_ANSWER_TIMEOUT))
        _check(source, downloaded(_CONFIG), architecture, convention)
        _log.info("weights: downloading %s of %s, unless it is there", FILE, source)
        return downloaded(FILE)
    except UserError:
        raise
    except OfflineModeIsEnabled:
        raise Unavailable("is not in the cache, and HF_HUB_OFFLINE forbids to fetch it") from None
    except RepositoryNotFoundError as error:
        raise Unavailable("does not exist on the hub, or needs a log-in") from error
    except LocalEntryNotFoundError as error:
        raise Unavailable(f"could not be downloaded ({_reason(error)})") from error
    except EntryNotFoundError as error:
        raise Unavailable(f"does not have both {FILE} and {_CONFIG}") from error
    except Exception as error:
        # Its errors of the network are those of an HTTP library that differs between its versions;
        # errors of the system have a number.
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"the cache of the hub cannot be used: {error}") from error
        raise Unavailable(f"could not be reached ({_reason(error)})") from error


def _check(source: str, config: Path, architecture: str, convention: Convention) -> None:
    """Refuses weights that were trained in another network, or on other images than it gets.

    A network may have the names and shapes of another and compute something else (timm's
    `resnetblur50` and `resnet50`).
    """
    try:
        whole = json.loads(config.read_text())
        theirs, trained = whole["architecture"], whole["pretrained_cfg"]
        mean, std = (np.asarray(trained[key], float).reshape(3) for key in ("mean", "std"))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the {_CONFIG} of {source} does not say what network it is and how its images were "
            "normalised, as those of timm do; give the path of a file whose weights you know"
        ) from error
    if theirs != architecture:
        raise AnotherNetwork(f"{source} holds {theirs}, not {architecture}: take weights of that")
    ours = np.asarray(convention.mean) / 255, np.asarray(convention.std) / 255
    for found, wanted in zip((mean, std), ours, strict=True):
        if not np.abs(found - wanted).max() <= _DIGITS:  # which is so of NaN too
            raise UserError(
                f"{source} was trained on images with mean {_text(mean)} and deviation "
                f"{_text(std)}; the network normalises to mean {_text(ours[0])} and deviation "
                f"{_text(ours[1])}: take other weights of it"
            )


def _text(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _reason(error: BaseException) -> str:
    """The first line of an error, or of what caused it where it is only said that there was one."""
    cause = error.__cause__ or error
    return str(cause).strip().partition("\n")[0] or type(cause).__name__
