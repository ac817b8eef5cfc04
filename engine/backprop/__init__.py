"""Fine-tune language models on one GPU: ``Trainer`` drives the same engine process as the application.

Importing this package costs almost nothing: names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backprop.core.presets import get_preset
    from backprop.hardware.gpu import GPUMonitor, check_gpu_safe
    from backprop.runs.retention import CheckpointManager, CheckpointPolicy
    from backprop.trainer import Trainer, TrainingCallback, TrainingRun, register_with_ollama

__version__ = "0.1.0"

_NAMES = {
    "CheckpointManager": "backprop.runs.retention",
    "CheckpointPolicy": "backprop.runs.retention",
    "GPUMonitor": "backprop.hardware.gpu",
    "Trainer": "backprop.trainer",
    "TrainingCallback": "backprop.trainer",
    "TrainingRun": "backprop.trainer",
    "check_gpu_safe": "backprop.hardware.gpu",
    "get_preset": "backprop.core.presets",
    "register_with_ollama": "backprop.trainer",
}
__all__ = [
    "CheckpointManager",
    "CheckpointPolicy",
    "GPUMonitor",
    "Trainer",
    "TrainingCallback",
    "TrainingRun",
    "check_gpu_safe",
    "get_preset",
    "register_with_ollama",
]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'backprop' has no attribute {name!r}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
