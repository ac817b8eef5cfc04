"""Where things live: the user's cache and data directories, by the platform's own conventions.

On Linux they follow ``XDG_CACHE_HOME``, ``XDG_DATA_HOME`` and ``XDG_CONFIG_HOME``. Beside these, the program
writes only to the output directory that the person named.
"""

from __future__ import annotations

import functools
import os
import stat
import tempfile
from collections.abc import Mapping
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
    """Models converted once and tokenised data: everything here can be deleted and is made again.

    Where the home directory is none or cannot be written, as in many containers, it is a folder of this user's among
    the temporary files.
    """
    usual = Path(platformdirs.user_cache_dir(APP, appauthor=False))
    return usual if can_hold(usual) else temporary_folder()


def can_hold(path: Path) -> bool:
    """Whether this process may make ``path``, or write in it where it is there."""
    there = next(each for each in (path, *path.parents) if os.path.lexists(each))
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


@functools.cache
def temporary_folder() -> Path:
    """A folder of this user's alone among the temporary files; the same each time, if nobody else took its name."""
    folder = Path(tempfile.gettempdir()) / f"{APP}-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022
    except OSError:
        ours = False
    # Whoever made that folder first could fill it: another user's is not used.
    return folder if ours else Path(tempfile.mkdtemp(prefix=f"{APP}-"))


def data_dir() -> Path:
    """The index over all runs: a speed-up, rebuilt from the run directories."""
    return Path(platformdirs.user_data_dir(APP, appauthor=False))


def state_dir() -> Path:
    """What the application remembers of how a person left it."""
    return Path(platformdirs.user_state_dir(APP, appauthor=False))


def config_dir() -> Path:
    """The user's settings file and saved configurations (``XDG_CONFIG_HOME`` on Linux)."""
    return Path(platformdirs.user_config_dir(APP, appauthor=False))


def model_cache(name: str) -> Path:
    """Directory in which the embedded model ``name`` is kept as safetensors."""
    return cache_dir() / "models" / name


def dataset_cache(name: str) -> Path:
    """Directory in which the dataset ``name`` of the Hugging Face Hub (``core.datasets``) is kept once fetched."""
    return cache_dir() / "datasets" / name.replace("/", "--").replace(":", "+")


def token_cache() -> Path:
    """Directory of tokenised datasets, one folder per key (see ``backprop.data.preprocess``)."""
    return cache_dir() / "tokens"


def offline(given: Mapping[str, str]) -> bool:
    """Whether these variables forbid to ask the hub."""
    return given.get("HF_HUB_OFFLINE", "").strip().lower() in {"1", "true", "yes", "on"}


def own_folders() -> list[Path]:
    """Where the program itself keeps what it needs, beside the output directory."""
    return [cache_dir(), data_dir(), state_dir(), config_dir()]
