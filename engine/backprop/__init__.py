"""Fine-tune language models on one GPU: ``Trainer`` drives the same engine process as the application.

Importing this package costs almost nothing: names are loaded when they are first used.
"""

from __future__ import annotations

__version__ = "0.1.0"
