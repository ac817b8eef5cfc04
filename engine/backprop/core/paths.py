"""Where things live: the user's cache and data directories, by the platform's own conventions.

On Linux they follow ``XDG_CACHE_HOME`` and ``XDG_DATA_HOME``. Beside these, the program
writes only to the output directory that the person named.
"""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from backprop.core.errors import InputError

APP = "backprop"


def expand(text: str | os.PathLike[str]) -> Path:
    """The absolute path that a person means by ``text``, ``~`` and ``~user`` included.

    Raises:
        InputError: there is no such user, or the working directory is gone.
    """
    path = Path(text)
    try:
        return path.expanduser().absolute()
    except RuntimeError:
        raise InputError(f"{path}: there is no home directory of {path.parts[0]}", hint="write the path out") from None
    except FileNotFoundError:
        raise InputError(
            f"{path}: the working directory is gone", hint="change to one that exists, or give an absolute path"
        ) from None


def cache_dir() -> Path:
    """Models converted once and tokenised data: everything here can be deleted and is made again."""
    return Path(platformdirs.user_cache_dir(APP, appauthor=False))


def data_dir() -> Path:
    """The index over all runs: a speed-up, rebuilt from the run directories."""
    return Path(platformdirs.user_data_dir(APP, appauthor=False))


def model_cache(name: str) -> Path:
    """Directory in which the embedded model ``name`` is kept as safetensors."""
    return cache_dir() / "models" / name


def dataset_cache(name: str) -> Path:
    """Directory in which the dataset ``name`` of the Hugging Face Hub (``core.datasets``) is kept once fetched."""
    return cache_dir() / "datasets" / name.replace("/", "--").replace(":", "+")


def token_cache() -> Path:
    """Directory of tokenised datasets, one folder per key (see ``backprop.data.preprocess``)."""
    return cache_dir() / "tokens"
