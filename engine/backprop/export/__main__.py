"""Writing a trained model in another format, in a process of its own: ``python -P -m backprop.export DIRECTORY``.

The request (``core.jobs.ExportRequest``) comes on standard input. What is written lies aside until it was opened again
and compared: a proof that fails, an error or a kill leave nothing at its place.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from backprop.core.errors import BackpropError, ExportError, GGUFError, InputError, LoRAExportError
from backprop.core.events import ModelLoading
from backprop.core.exports import FORMATS
from backprop.core.files import new_output
from backprop.core.jobs import Check, Exported, ExportRequest, JobProgress
from backprop.core.refused import refusal
from backprop.runs.checkpoints import require_space
from backprop.worker.job import Send, paced, run_job

BESIDE_NF4 = (
    "the adapter was trained beside its base in 4 bits (NF4): loaded so it answers as it was trained, "
    "with the base in 16 bits a little otherwise"
)


def export(request: ExportRequest, send: Send, scratch: Path) -> Exported:
    """Write what is asked for and prove it.

    Args:
        scratch: an empty folder, for what is needed on the way.

    Raises:
        InputError: the format, precision or source cannot be used, or something is at the target's place.
        ExportError: it could not be written, or is not the trained model (the comparison that failed is named).
    """
    precision = chosen_precision(request)
    send(JobProgress(doing="looking at the model"))
    from backprop.export.formats import format_named
    from backprop.export.source import open_source

    source = open_source(request, send, scratch)
    writer = format_named(request.format)
    name = writer.file_name(source, precision)
    if source.step is not None:
        stem, dot, suffix = name.partition(".gguf")
        name = f"{stem}-step-{source.step}{dot}{suffix}"
    if writer.FOLDER and source.state is None:
        name = f"{source.name}-{name}"
    target = Path(request.output).absolute() if request.output else source.folder / name
    progress = paced(send)
    settled = None
    if source.nf4 and request.format in ("merged", "gguf"):
        from backprop.export.nearest import settle

        settled = settle(source, request.answers, progress)
    try:
        needed = writer.predicted_bytes(source, precision)
        with new_output(target, folder=writer.FOLDER) as aside:
            require_space(aside.parent, needed, "an export", "--output can name another disk", ExportError)
            notes = writer.write(source, aside, precision, progress)
            check = writer.check(source, aside, precision, request.answers, progress)
            if settled is not None:
                check.compared.insert(0, settled)
            elif source.nf4:
                notes.append(BESIDE_NF4)
            require_passed(check, request.format)
    except FileExistsError as error:
        if error.filename != str(target):
            raise
        raise InputError(
            f"{target} exists already", hint="name another place with --output, or move it away; nothing is replaced"
        ) from error
    except OSError as error:
        what = f"{target} could not be written"
        raise refusal(error, what, ExportError, otherwise="name another place with --output") from error
    except BackpropError as error:  # the person's folder, not the copy of its small files that was read
        error.message = error.message.replace(str(scratch / "model"), str(source.base))
        raise
    files = [path for path in target.rglob("*") if path.is_file()] if target.is_dir() else [target]
    size = sum(path.stat().st_size for path in files)
    return Exported(
        path=str(target), format=request.format, quantization=precision, bytes=size, check=check, notes=notes
    )


def chosen_precision(request: ExportRequest) -> str:
    """The precision that is meant.

    Raises:
        InputError: there is no such format, or it has no such precision.
    """
    if request.format not in FORMATS:
        raise InputError(f"there is no format {request.format!r}", hint=f"formats: {', '.join(FORMATS)}")
    known, wanted = FORMATS[request.format].precisions, request.precision.lower()  # llama.cpp writes them in capitals
    if wanted and wanted not in known:
        raise InputError(
            f"{request.format} is not written in {request.precision!r}", hint=f"it is in: {', '.join(known)}"
        )
    return wanted or known[0]


def require_passed(check: Check, format: str) -> None:
    """Check that the proof holds.

    Raises:
        ExportError: a comparison failed; all that did are named. The format's own kind of it.
    """
    failed = [f"{each.name}: {each.detail}" for each in check.compared if not each.passed]
    if failed or not check.passed:
        failing = {"lora": LoRAExportError, "merged": ExportError}.get(format, GGUFError)
        raise failing(
            f"what was written is not the trained model, and was deleted: {'; '.join(failed)}",
            hint="this is a defect; the versions of the libraries are in `backprop info`",
        )


def answer(request: ExportRequest, send: Send) -> Exported:
    """Do what is asked for; a checkpoint's adapter is put together in the job's own folder."""

    def told(message: object) -> None:
        if isinstance(message, ModelLoading):
            send(JobProgress(doing=f"fetching {message.model}", done=message.done, total=message.total))
        else:
            send(message)  # type: ignore[arg-type]

    with tempfile.TemporaryDirectory(dir=sys.argv[1]) as scratch:
        return export(request, told, Path(scratch))


if __name__ == "__main__":
    run_job(ExportRequest, answer)
