"""The optional packages: which set of this program's (``pip install "backprop-tui[train]"``) brings which module.

The base is the application, the command line and the data tools. What is missing is named where it is needed.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from backprop.core.errors import MissingDependencyError
from backprop.core.settings import RunConfig

DISTRIBUTION = "backprop-tui"
TRAINING = ("torch", "transformers", "peft", "safetensors")
_EXTRAS = {
    **dict.fromkeys((*TRAINING, "accelerate", "datasets"), "train"),
    **dict.fromkeys(("gguf", "libgguf"), "export"),
    "bitsandbytes": "qlora",
    "llama_cpp": "llama",
    "textual_serve": "web",
}


def install_command(extra: str) -> str:
    """What installs an extra into this environment; the quotes suit every shell."""
    wanted = f'"{DISTRIBUTION}[{extra}]"'
    if (Path(sys.prefix) / "pipx_metadata.json").is_file():
        return f"pipx runpip {DISTRIBUTION} install {wanted}"
    if find_spec("pip") is None:  # nor has what uv makes
        return f'uv pip install --python "{sys.executable}" {wanted}'
    return f"pip install {wanted}"


def require_modules(what: str, extra: str, *modules: str) -> None:
    """Check, without importing them, that ``modules`` are there for ``what``, which ``extra`` brings.

    Raises:
        MissingDependencyError: some are not, with the command that installs them.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise MissingDependencyError(
            f"{what} needs {', '.join(missing)}, which this installation does not have", hint=install_command(extra)
        )


def require_for(config: RunConfig) -> None:
    """Check that this installation has what training as ``config`` says needs.

    Raises:
        MissingDependencyError: it has not.
    """
    require_modules("training", "train", *TRAINING)
    if config.backend == "mlx":
        require_modules("--backend mlx", "mlx", "mlx", "mlx_lm")
    if config.mode == "qlora":
        require_modules("--mode qlora", "qlora", "bitsandbytes")
    if config.optim != "adamw":
        require_modules(f"--optim {config.optim}", "qlora", "bitsandbytes")


def can_train() -> bool:
    """Whether this installation has what training needs."""
    return all(find_spec(name) is not None for name in TRAINING)


def missing_dependency(error: ModuleNotFoundError) -> MissingDependencyError | None:
    """The error for a person where what could not be imported is optional; ``None`` where it is not."""
    name = (error.name or "").partition(".")[0]
    if name not in _EXTRAS:
        return None
    return MissingDependencyError(f"this needs {name}, which is not installed", hint=install_command(_EXTRAS[name]))
