"""Where things live: the user's cache, data and settings directories, by the platform's own conventions.

On Linux they follow ``XDG_CACHE_HOME``, ``XDG_DATA_HOME`` and ``XDG_CONFIG_HOME``. Beside these, the program
writes only to the output directory that the person named.
"""

from __future__ import annotations

from pathlib import Path

import platformdirs

APP = "backprop"


def cache_dir() -> Path:
    """Models converted once and tokenised data: everything here can be deleted and is made again."""
    return Path(platformdirs.user_cache_dir(APP, appauthor=False))


def data_dir() -> Path:
    """The index over all runs: a speed-up, rebuilt from the run directories."""
    return Path(platformdirs.user_data_dir(APP, appauthor=False))


def settings_dir() -> Path:
    """The user's settings file and saved configurations."""
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
