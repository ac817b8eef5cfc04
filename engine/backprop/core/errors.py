"""Every error a person can meet: one hierarchy, each with a stable code, a hint and an exit code.

The engine process sends errors as ``run_failed`` events, the command line prints them, ``--json``
answers carry them as ``{"error": {...}}``. Codes are an interface: scripts match on them, so a code
is never renamed. ``backprop info --error-codes`` prints the table below (``ERROR_CODES``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXIT_OK = 0
EXIT_USER = 1
"""Bad arguments, configuration or data: the person can fix it and nothing was harmed."""
EXIT_RUNTIME = 2
"""Model, GPU, export or IO failed while working."""
EXIT_PARTIAL = 3
"""Part of what was asked for is done: some of several runs failed; or the export stands, and Ollama did not take it or
the fine-tune is lost in it."""
EXIT_INTERRUPTED = 130
"""Ended by Ctrl+C or SIGTERM."""

ERROR_CODES: dict[str, str] = {
    "INPUT_VALIDATION_FAILED": "an argument or a row of data is not usable",
    "INPUT_AUTH_REQUIRED": "the web interface was asked to listen beyond this machine without a password",
    "CONFIG_INVALID": "the configuration as a whole does not make sense",
    "CONFIG_INVALID_SETTING": "one setting has a value outside its range, or an unknown name",
    "DATASET_NOT_FOUND": "the dataset path does not exist or cannot be read",
    "DATASET_DOWNLOAD_FAILED": "the dataset could not be fetched",
    "DATASET_AMBIGUOUS": "the dataset has several configurations or splits, and nothing says which is meant",
    "DATASET_PARSE_FAILED": "the file is not what its ending says, or is broken",
    "DATASET_EMPTY": "the dataset holds no row",
    "DATASET_FORMAT_UNKNOWN": "no known row format was recognised, or several are mixed",
    "DATASET_NOTHING_TO_TRAIN": "no row has a token that would be trained",
    "DATASET_ROWS_UNUSABLE": "some rows would train nothing and --skip-bad was not given",
    "DEP_MISSING": "an optional package is needed for this and is not installed",
    "DEP_GPU_NOT_AVAILABLE": "a GPU was asked for and none can be used",
    "DEP_GPU_MONITORING_FAILED": "the GPU's sensors cannot be read",
    "DEP_MODEL_LOAD_FAILED": "the model or its tokenizer could not be loaded",
    "DEP_MODEL_DOWNLOAD_FAILED": "the model could not be fetched",
    "DEP_OLLAMA_REGISTRATION_FAILED": "Ollama did not take the model",
    "RUN_NOT_FOUND": "no run has this id, or a prefix fits more than one",
    "RUN_ALREADY_ACTIVE": "another process is working on this run directory",
    "RUN_NOT_ACTIVE": "the run is not running, so it cannot take commands",
    "RUN_DAMAGED": "the run directory is incomplete or was altered",
    "RUNTIME_ENGINE_CRASHED": "the engine process ended without saying why",
    "RUNTIME_TRAINING_FAILED": "training stopped on an error",
    "RUNTIME_TRAINING_ABORTED": "training was aborted on request",
    "RUNTIME_NOTHING_IS_TRAINING": "no weight changed, or every gradient was zero",
    "RUNTIME_NOT_FINITE": "too many optimizer steps in a row had a loss or gradient that is not finite",
    "RUNTIME_GPU_OOM": "the GPU's memory is not enough even after the batch was halved",
    "RUNTIME_GPU_TEMPERATURE_CRITICAL": "the GPU is too hot to go on",
    "RUNTIME_FULL_FT_MODEL_TOO_LARGE": "full fine-tuning of this model does not fit",
    "RUNTIME_EXPORT_FAILED": "the result could not be exported",
    "RUNTIME_LORA_EXPORT_FAILED": "the adapter that was written is not the trained one",
    "RUNTIME_GGUF_EXPORT_FAILED": "the GGUF file could not be written or does not agree with the model",
    "RUNTIME_MERGE_FAILED": "adapters could not be merged",
    "RUNTIME_SLAO_MERGE_FAILED": "a run's adapter cannot be merged with those of the runs before it",
    "RUNTIME_BATCH_FAILED": "none of several runs came to an end",
    "RUNTIME_IO_FAILED": "reading or writing a file failed",
    "RUNTIME_DISK_FULL": "the disk has no room for what is to be written",
    "RUNTIME_UI_AUTH_NOT_ENFORCED": "the web server would not enforce the password",
    "RUNTIME_CANCELLED": "stopped on request before it was done",
    "RUNTIME_INTERNAL": "a defect in this program",
    "REMOTE_UNREACHABLE": "the other machine cannot be reached over ssh, or nothing answers there",
    "REMOTE_VERSION_MISMATCH": "the version on the other machine does not go with this one",
    "STATE_CHECKPOINT_INVALID": "no checkpoint of the run passes verification",
    "STATE_IDENTITY_MISMATCH": "model, data or configuration differ from what the checkpoint was made with",
    "UI_OUTPUT_DIR_FORBIDDEN": "writing to this directory is not allowed from the web interface",
}

REMEDIES: dict[str, str] = {
    "INPUT_VALIDATION_FAILED": "give what the message asks for; `--help` of the command has the form",
    "INPUT_AUTH_REQUIRED": "`--auth @FILE`, or listen on this machine alone and come through `ssh -L`",
    "CONFIG_INVALID": "change one of the settings that are named; `backprop config` shows where each comes from",
    "CONFIG_INVALID_SETTING": "correct the place that is named; `backprop config` has every name and range",
    "DATASET_NOT_FOUND": "look at the path, or at the name on the hub",
    "DATASET_DOWNLOAD_FAILED": "try again when the network is there; a private dataset needs HF_TOKEN",
    "DATASET_AMBIGUOUS": "name one of those that are listed: owner/name:configuration:split",
    "DATASET_PARSE_FAILED": "mend the line that is named; `backprop validate` lists all",
    "DATASET_EMPTY": "look whether it is the right file, and whether a filter took every row",
    "DATASET_FORMAT_UNKNOWN": "`--map FIELD=COLUMN` says what is where; `backprop validate` shows how rows are read",
    "DATASET_NOTHING_TO_TRAIN": "the findings say why: a longer `--max-seq-length`, `--map`, or another method",
    "DATASET_ROWS_UNUSABLE": "`backprop validate` lists them; mend them, or leave them out by `--skip-bad`",
    "DEP_MISSING": "the `pip install` that the message names",
    "DEP_GPU_NOT_AVAILABLE": "`backprop info` says what is wrong with the card or driver; `--backend cpu` does without",
    "DEP_GPU_MONITORING_FAILED": "look at the driver with `nvidia-smi`, then `backprop resume`",
    "DEP_MODEL_LOAD_FAILED": "look at the name or folder; delete an incomplete download",
    "DEP_MODEL_DOWNLOAD_FAILED": "try again when the network is there; a model behind a licence needs HF_TOKEN",
    "DEP_OLLAMA_REGISTRATION_FAILED": "start Ollama, then `backprop ollama register FILE --name N`: the export stands",
    "RUN_NOT_FOUND": "`backprop list-runs` has the ids; a path to the run's directory works too",
    "RUN_ALREADY_ACTIVE": "watch it: `backprop-tui --attach RUN`; or wait until it has ended",
    "RUN_NOT_ACTIVE": "`backprop resume RUN` continues it",
    "RUN_DAMAGED": "put the file that is named back from a copy; other runs are not concerned",
    "RUNTIME_ENGINE_CRASHED": "read `engine.log` in the run's directory, then `backprop resume RUN`",
    "RUNTIME_TRAINING_FAILED": "`--verbose` shows where; `backprop resume RUN` continues from the last checkpoint",
    "RUNTIME_TRAINING_ABORTED": "`backprop resume RUN` continues from the last checkpoint",
    "RUNTIME_NOTHING_IS_TRAINING": "look at the mask of the first rows, at `--target-modules` and the learning rate",
    "RUNTIME_NOT_FINITE": "a lower `--lr`, or look at the rows of the steps that were skipped",
    "RUNTIME_GPU_OOM": "a smaller `--batch-size` or `--max-seq-length`, `--gradient-checkpointing`, `--mode qlora`",
    "RUNTIME_GPU_TEMPERATURE_CRITICAL": "let it cool and look at its fans, then `backprop resume RUN`",
    "RUNTIME_FULL_FT_MODEL_TOO_LARGE": "`--mode lora`, or a smaller model; `backprop estimate-vram` says what fits",
    "RUNTIME_EXPORT_FAILED": "the message names the part; the run's adapter is as it was",
    "RUNTIME_LORA_EXPORT_FAILED": "look at the disk; the run's own adapter is as it was",
    "RUNTIME_GGUF_EXPORT_FAILED": "another `-q`, or `--format merged`; nothing half written is left",
    "RUNTIME_MERGE_FAILED": "the base model must be the one that was trained on; name its folder",
    "RUNTIME_SLAO_MERGE_FAILED": "what was merged before stands; run again with the same rank and layers for all",
    "RUNTIME_BATCH_FAILED": "the message has the reason of each; `backprop show-run RUN` shows one",
    "RUNTIME_IO_FAILED": "look at the disk and at the permissions of the path",
    "RUNTIME_DISK_FULL": "free some space; `backprop resume RUN` continues a run",
    "RUNTIME_UI_AUTH_NOT_ENFORCED": "report it; nothing is served",
    "RUNTIME_CANCELLED": "nothing: start it again when it is wanted",
    "RUNTIME_INTERNAL": "report it with what `--verbose` shows",
    "REMOTE_UNREACHABLE": "try `ssh HOST` by itself; install backprop-tui there, or name its path as the message says",
    "REMOTE_VERSION_MISMATCH": "install the same version on both machines",
    "STATE_CHECKPOINT_INVALID": "`backprop fork RUN` from a checkpoint that passes, or train again",
    "STATE_IDENTITY_MISMATCH": "put back what is named in the list of differences, or `backprop fork RUN`",
    "UI_OUTPUT_DIR_FORBIDDEN": "name a directory inside the one that `backprop ui` gave with `--output`",
}
"""What a person does about a code in general. An error's own hint knows the case and is nearer."""


class BackpropError(Exception):
    """Base of every error that is meant for a person.

    Args:
        message: what is wrong, with the place (file, line, field) where there is one.
        hint: the next thing to do; where none is given, what its code has in ``REMEDIES``.
        code: stable code from ``ERROR_CODES``; each class has a default.
        retryable: whether doing the same again can help.
        details: machine-readable facts about the place (``path``, ``line``, ``field`` …). ``remedy``: values of
            settings with which the hint would be followed, for a screen to fill in.

    The cause is the exception it was raised ``from``.
    """

    code = "RUNTIME_INTERNAL"
    exit_code = EXIT_RUNTIME
    retryable = False

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str | None = None,
        retryable: bool | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = details or {}
        if code is not None:
            if code not in ERROR_CODES:
                raise ValueError(f"{code} is not in ERROR_CODES")
            self.code = code
            if code.startswith("RUNTIME_") and self.exit_code == EXIT_USER:
                self.exit_code = EXIT_RUNTIME  # of whatever class: a full disk is no bad argument
        self.hint = hint or REMEDIES[self.code]
        if retryable is not None:
            self.retryable = retryable

    def to_dict(self) -> dict[str, Any]:
        """The ``error`` object of a ``--json`` answer (SPEC section 13)."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
            **({"details": self.details} if self.details else {}),
        }


class InputError(BackpropError):
    """An argument on the command line, or of the library, is not usable."""

    code = "INPUT_VALIDATION_FAILED"
    exit_code = EXIT_USER


class ConfigurationError(BackpropError):
    """The configuration as a whole does not make sense."""

    code = "CONFIG_INVALID"
    exit_code = EXIT_USER


class InvalidSettingError(ConfigurationError):
    """One setting is unknown or out of its range; ``details["field"]`` names it."""

    code = "CONFIG_INVALID_SETTING"


class MissingDependencyError(BackpropError):
    """An optional package is needed for this, and is not installed or does not work."""

    code = "DEP_MISSING"
    exit_code = EXIT_USER


class DatasetError(BackpropError):
    """A dataset cannot be used as asked."""

    code = "INPUT_VALIDATION_FAILED"
    exit_code = EXIT_USER


class DatasetNotFoundError(DatasetError):
    """There is no such file, or no dataset of that name."""

    code = "DATASET_NOT_FOUND"


class DatasetDownloadError(DatasetError):
    """The dataset could not be fetched from the hub."""

    code = "DATASET_DOWNLOAD_FAILED"
    exit_code = EXIT_RUNTIME
    retryable = True


class DatasetParseError(DatasetError):
    """The file is not what its ending says, or is broken."""

    code = "DATASET_PARSE_FAILED"


class DatasetValidationError(DatasetError):
    """Some rows would train nothing."""

    code = "DATASET_ROWS_UNUSABLE"


class DatasetFormatError(DatasetError):
    """No known row format was recognised."""

    code = "DATASET_FORMAT_UNKNOWN"


class RunError(BackpropError):
    """A run directory or run id cannot be used as asked."""

    code = "RUN_NOT_FOUND"
    exit_code = EXIT_USER


class OperationCancelledError(BackpropError):
    """The person stopped a piece of work that had begun (unpacking, downloading …); nothing half-made is left."""

    code = "RUNTIME_CANCELLED"
    exit_code = EXIT_INTERRUPTED


class TrainingError(BackpropError):
    """Training, or something it needs, failed."""

    code = "RUNTIME_TRAINING_FAILED"


class ModelLoadError(TrainingError):
    """The model or its tokenizer cannot be had or loaded."""

    code = "DEP_MODEL_LOAD_FAILED"


class TrainingAbortedError(TrainingError):
    """Somebody asked the engine to end at once."""

    code = "RUNTIME_TRAINING_ABORTED"


class CheckpointError(TrainingError):
    """A checkpoint, or an adapter, cannot be read, written or continued from."""

    code = "STATE_CHECKPOINT_INVALID"


class EngineCrashedError(TrainingError):
    """The engine process is gone and left no end event; the message has the last lines of its log."""

    code = "RUNTIME_ENGINE_CRASHED"


class GPUError(BackpropError):
    """The GPU cannot be used as asked."""

    code = "DEP_GPU_NOT_AVAILABLE"


class GPUNotAvailableError(GPUError):
    """A GPU was asked for and none can be used."""


class GPUMemoryError(GPUError):
    """The GPU's memory is not enough."""

    code = "RUNTIME_GPU_OOM"


class GPUTemperatureError(GPUError):
    """The GPU is too hot to go on."""

    code = "RUNTIME_GPU_TEMPERATURE_CRITICAL"
    retryable = True


class GPUMonitoringError(GPUError):
    """There is a GPU, and its sensors cannot be read."""

    code = "DEP_GPU_MONITORING_FAILED"


class ExportError(BackpropError):
    """A trained model could not be written in another format, or what was written is not that model."""

    code = "RUNTIME_EXPORT_FAILED"


class LoRAExportError(ExportError):
    """An adapter that was written is not the one that was trained."""

    code = "RUNTIME_LORA_EXPORT_FAILED"


class MergeError(ExportError):
    """An adapter could not be merged into its base model."""

    code = "RUNTIME_MERGE_FAILED"


class GGUFError(ExportError):
    """A GGUF file could not be written, or does not agree with the model."""

    code = "RUNTIME_GGUF_EXPORT_FAILED"


class OllamaRegistrationError(ExportError):
    """Ollama is not there, or did not take the model."""

    code = "DEP_OLLAMA_REGISTRATION_FAILED"


class RemoteError(BackpropError):
    """The application on another machine cannot be reached or used."""

    code = "REMOTE_UNREACHABLE"
    retryable = True


class SLAOError(BackpropError):
    """Runs in sequence cannot be merged, or not be continued."""


class SLAOMergeError(SLAOError):
    """An adapter cannot be merged with those of the runs before it; what was merged stays as it is."""

    code = "RUNTIME_SLAO_MERGE_FAILED"


class SLAOCheckpointError(SLAOError, CheckpointError):
    """What was merged so far cannot be read."""


class BatchOperationError(BackpropError):
    """Of several things that were asked for, none was done."""

    code = "RUNTIME_BATCH_FAILED"


_FAMILIES: tuple[tuple[str, type[BackpropError]], ...] = (
    ("INPUT_", InputError),
    ("CONFIG_", ConfigurationError),
    ("DATASET_", DatasetError),
    ("RUN_", RunError),
    ("DEP_MODEL_", ModelLoadError),
    ("DEP_GPU_", GPUError),
    ("DEP_OLLAMA_", OllamaRegistrationError),
    ("STATE_", CheckpointError),
    ("UI_", InputError),
    ("RUNTIME_EXPORT_", ExportError),
    ("RUNTIME_GGUF_", GGUFError),
    ("RUNTIME_MERGE_", MergeError),
    ("RUNTIME_SLAO_", SLAOMergeError),
    ("REMOTE_", RemoteError),
    ("RUNTIME_", TrainingError),
)


def error_for(
    code: str, message: str, hint: str = "", retryable: bool = False, details: dict[str, Any] | None = None
) -> BackpropError:
    """The error that an engine process reported, as the class that raises its code here.

    A code that is the default of a class gives that class, another one the class of its family; one that this
    version does not know is kept in the message.
    """
    if code not in ERROR_CODES:
        return BackpropError(f"[{code}] {message}", hint=hint, retryable=retryable, details=details)
    waiting = BackpropError.__subclasses__()
    for known in waiting:
        if vars(known).get("code") == code:
            return known(message, hint=hint, code=code, retryable=retryable, details=details)
        waiting += known.__subclasses__()
    family = next((error for prefix, error in _FAMILIES if code.startswith(prefix)), BackpropError)
    return family(message, hint=hint, code=code, retryable=retryable, details=details)


def some(names: Sequence[str], most: int = 2) -> str:
    """The first of ``names`` for a message, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
