"""What every engine process sets up before its work, and how it reports what ended it."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from backprop.core.errors import BackpropError
from backprop.core.events import RunFailed
from backprop.core.extras import DISTRIBUTION, missing_dependency
from backprop.core.paths import cache_dir
from backprop.core.redaction import redact
from backprop.core.refused import refused
from backprop.hardware.devices import LIBRARIES, installed_version

_LAUNCHERS = re.compile(
    r"((LOCAL_|GROUP_|ROLE_|CROSS_)?(RANK|WORLD_SIZE)|ROLE_NAME|LOCAL_SIZE|NODE_RANK|MASTER_(ADDR|PORT)"
    r"|(TORCHELASTIC|OMPI|PMI|PMIX|MPI|MV2|ACCELERATE|FSDP|SM|SMP)_\w+|MPI_LOCAL(NRANKS|RANKID))"
)
"""Variables by which a launcher tells a process that it is one of several."""


def environment() -> dict[str, Any]:
    """What the result depends on beside data and configuration: versions and the machine."""
    facts = {"python": sys.version.split()[0], "platform": sys.platform, "host": os.uname().nodename}
    versions = {name: installed_version(name) for name in (DISTRIBUTION, *LIBRARIES, "mlx", "mlx-lm")}
    return {**facts, **versions, "code": code_digest()}


@functools.cache
def code_digest() -> str:
    """Names this program's own code, whatever its version says: the beginning of a hash over its files."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def quiet_libraries() -> None:
    """Nothing is sent anywhere, no progress bars, no news for the libraries' own callers: set before they are imported.

    The last lines of the log are what a person reads when an engine has gone. An engine is one process: in the shell of
    a cluster's or of torchrun's launcher it would wait for ever for the others.
    """
    for name in [name for name in os.environ if _LAUNCHERS.fullmatch(name)]:
        del os.environ[name]
    # By this package libraries fetch compiled code from the hub, unasked: bitsandbytes does as it is imported.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    # Threads of torch that wait for each other spin for many milliseconds by default: with two runs on two cores those
    # that are waited for get no turn, and both runs all but stop.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Importing torch makes this folder, by default beside everybody's temporary files.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "torchinductor"))


@contextmanager
def importing() -> Iterator[None]:
    """Inside, nothing is looked through for garbage, nor is ever after what was made there: a fifth of an import."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def failure(error: BaseException) -> RunFailed:
    """The event for ``error``; secrets in it are blacked out."""
    known = _known(error)
    return RunFailed(
        code=known.code,
        message=redact(known.message),
        hint=redact(known.hint),
        retryable=known.retryable,
        traceback=redact("".join(traceback.format_exception(error))),
        details={name: redact(each) if isinstance(each, str) else each for name, each in known.details.items()},
    )


def _known(error: BaseException) -> BackpropError:
    if isinstance(error, BackpropError):
        return error
    if isinstance(error, ModuleNotFoundError) and (missing := missing_dependency(error)):
        return missing
    if isinstance(error, OSError):
        return refused(error)
    text = f"{type(error).__name__}: {error}"
    hint = "--verbose shows the traceback; the run's engine.log has the rest"
    return BackpropError(text, hint=hint, code="RUNTIME_TRAINING_FAILED")


def end_process(code: int) -> NoReturn:
    """End this process at once: libraries leave threads and at-exit hooks behind that can hang or crash it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
