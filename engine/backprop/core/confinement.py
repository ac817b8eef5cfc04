"""Where a session in a browser may write: beneath one directory, which is no place of the system or of credentials.

A process that is started with ``CONFINED`` in its environment is held to it, and so are the engines that it starts.
What the program keeps for itself (cache, index, named configurations) stays where it is.
"""

from __future__ import annotations

import os
from pathlib import Path

from backprop.core import paths
from backprop.core.errors import InputError

CONFINED = "WRITING_CONFINED_TO"
_SYSTEM = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr", "/var"),
    *("/Library", "/System"),
)
_CREDENTIALS = (
    *(".ssh", ".gnupg", ".aws", ".azure", ".config", ".docker", ".kube", ".mozilla", ".password-store", ".pki"),
    *(".cache/huggingface", ".local/share/keyrings", ".git-credentials", ".netrc"),
)
"""In the home directory."""


def require_writable(path: Path) -> None:
    """Check that this process may write to ``path``.

    Raises:
        InputError: it is confined, and the path is not within (code ``UI_OUTPUT_DIR_FORBIDDEN``).
    """
    root = os.environ.get(CONFINED)
    if root and not any(_within(path, place) for place in (Path(root), *paths.own_folders())):
        raise InputError(
            f"{path} may not be written from a browser",
            hint=f"name a place in {root}, or start `backprop ui` with another --output",
            code="UI_OUTPUT_DIR_FORBIDDEN",
        )


def confined_directory(text: str) -> Path:
    """The directory that sessions may write to, made for this user alone where it is missing.

    Raises:
        InputError: it belongs to the system, holds credentials, or is above such places
            (code ``UI_OUTPUT_DIR_FORBIDDEN``).
        OSError: it cannot be made.
    """
    path = Path(os.path.realpath(paths.expand(text)))
    for place in (*map(Path, _SYSTEM), *(Path.home() / name for name in _CREDENTIALS)):
        if _within(path, place) or _within(place, path):
            raise InputError(
                f"writing to {path} is not allowed from a browser, because of {place}",
                hint="name a directory of its own with --output",
                code="UI_OUTPUT_DIR_FORBIDDEN",
            )
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _within(path: Path, place: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(place))
