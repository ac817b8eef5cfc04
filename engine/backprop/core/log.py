"""The log: lines for whoever looks afterwards, to standard error and to a file, never to standard output.

What a run does is told by its engine (``worker.process``), which is given the settings of whoever started it by
variables. Every line has the run's id, control characters in it are escaped, and secrets are blacked out here, where
the text leaves the process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from backprop.core.errors import InputError
from backprop.core.redaction import CONTROLS, redact
from backprop.core.settings import AppConfig

LOGGER = logging.getLogger("backprop")
_VARIABLE = "BACKPROPAGATE_"
_chosen = AppConfig()


class _Lines(logging.Formatter):
    """One line of text, or one JSON object, for each line of a message."""

    def __init__(self, run_id: str, as_json: bool) -> None:
        super().__init__()
        self._run_id = run_id
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        text = redact(record.getMessage() + (f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""))
        run_id = getattr(record, "run_id", "") or self._run_id
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        if self._as_json:
            facts = {"time": moment, "level": record.levelname.lower(), "run_id": run_id, "message": text}
            return json.dumps(facts)
        begin = f"{moment} {record.levelname.lower():<7} run_id={run_id or '-'} "
        return "\n".join(begin + CONTROLS.sub(lambda found: repr(found[0])[1:-1], line) for line in text.split("\n"))


def choose(config: AppConfig) -> None:
    """Take settings for this process's log and those of the engines that it starts.

    Raises:
        InputError: the log file cannot be written.
    """
    global _chosen  # noqa: PLW0603  # a process has one log
    if config.log_file:
        path = Path(config.log_file).expanduser().absolute()
        try:
            path.open("ab").close()
        except OSError as error:
            raise InputError(
                f"the log cannot be written to {path}: {error.strerror}",
                hint="look at --log-file, BACKPROPAGATE_LOG_FILE and `backprop config get log_file`",
                details={"field": "log_file", "path": str(path)},
            ) from error
        config = AppConfig(log_level=config.log_level, log_json=config.log_json, log_file=str(path))
    _chosen = config


def variables() -> dict[str, str]:
    """The environment of an engine that this process starts: its own, with the settings of the log."""
    given = {
        "LOG_LEVEL": _chosen.log_level,
        "LOG_FILE": _chosen.log_file,
        "LOG_JSON": "true" if _chosen.log_json else None,
    }
    return {**os.environ, **{_VARIABLE + name: value for name, value in given.items() if value is not None}}


def from_variables(variables: Mapping[str, str] = os.environ) -> AppConfig:
    """The settings that ``variables`` gave to this process."""
    level = variables.get(f"{_VARIABLE}LOG_LEVEL", "")
    return AppConfig(
        log_level=level if level in ("debug", "info", "warning", "error") else None,  # type: ignore[arg-type]
        log_file=variables.get(f"{_VARIABLE}LOG_FILE") or None,
        log_json=variables.get(f"{_VARIABLE}LOG_JSON") == "true",
    )


def open_log(config: AppConfig, run_id: str = "", *, stderr: bool = True) -> None:
    """Write this process's log to standard error where ``stderr`` is set, and to the file where one is named."""
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)] if stderr else []
    if config.log_file:
        try:
            handlers.append(logging.FileHandler(config.log_file, encoding="utf-8", errors="backslashreplace"))
            # What is said of a run by who watches it, its engine has written.
            handlers[-1].addFilter(lambda record: not getattr(record, "run_id", ""))
        except OSError as error:
            print(f"{config.log_file} cannot be written: {error.strerror}", file=sys.stderr)
    for handler in handlers:
        handler.setFormatter(_Lines(run_id, config.log_json))
    LOGGER.handlers[:] = handlers
    LOGGER.propagate = False
    LOGGER.setLevel((config.log_level or ("info" if config.log_file else "warning")).upper())
