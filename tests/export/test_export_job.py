"""The export job: what is exported, what is refused, and that nothing half-made is ever left or taken for a result."""

from __future__ import annotations

import errno
import filecmp
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from backprop.core import files
from backprop.core.errors import BackpropError, EngineCrashedError, ExportError, GGUFError, LoRAExportError
from backprop.core.jobs import Check, Comparison, Exported, ExportRequest
from backprop.data.tokenizer import ChatTokenizer
from backprop.export import __main__ as job
from backprop.export import sharded
from backprop.export.formats import gguf as gguf_format
from backprop.export.formats import lora, merged
from backprop.export.source import open_source
from backprop.runs.directory import RunDirectory
from backprop.runs.engine_jobs import EngineJob, export_model
from forked_engines import EngineHost
from gguf import GGUFReader
from peft import PeftModel
from pinned_machine import within
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM


def export(tmp_path: Path, source: Path, form: str = "merged", **asked: Any) -> Exported:
    """The job's work in the test's own process."""
    scratch = Path(tempfile.mkdtemp(dir=tmp_path))
    return job.export(ExportRequest(source=str(source), format=form, **asked), lambda message: None, scratch)


def listed(folder: Path) -> list[str]:
    """All files below a folder, hidden ones too."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_run_is_merged_by_a_process_of_its_own(trained: RunDirectory, base: Path) -> None:
    told: list[Any] = []

    done = export_model(ExportRequest(source=str(trained.path), format="merged", precision="f32"), told.append)

    assert Path(done.path) == trained.path / "exports" / "merged-f32"
    assert (done.format, done.quantization, done.check.passed) == ("merged", "f32", True)
    assert [each.name for each in done.check.compared] == ["tensors", "logits"]
    assert done.check.kl is not None
    assert done.check.kl < within(1e-6, bf16=1e-2)
    assert done.check.top1 >= within(1.0, bf16=0.9)
    assert done.bytes == sum(path.stat().st_size for path in Path(done.path).iterdir())
    assert any(each.total for each in told)
    expected = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), trained.adapter
    ).merge_and_unload()
    found = AutoModelForCausalLM.from_pretrained(done.path)
    assert found.dtype == torch.float32
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-6, atol=1e-6)
    assert listed(trained.path / "exports") == [f"merged-f32/{path.name}" for path in sorted(Path(done.path).iterdir())]
    assert (Path(done.path) / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_the_adapter_alone_is_the_trained_one(trained: RunDirectory, tmp_path: Path) -> None:
    done = export(tmp_path, trained.path, "lora", output=str(tmp_path / "mine"))

    assert done.check.passed
    assert (
        load_file(tmp_path / "mine" / "adapter_model.safetensors").keys()
        == load_file(trained.adapter / "adapter_model.safetensors").keys()
    )
    assert any("its place on this machine" in note for note in done.notes)


def test_a_checkpoint_is_exported_as_the_run_was_then(trained: RunDirectory, base: Path, tmp_path: Path) -> None:
    last, earlier = (export(tmp_path, trained.path, "lora", step=step) for step in (4, 2))

    assert [Path(each.path).name for each in (last, earlier)] == ["lora-step-4", "lora-step-2"]
    of_step_4, of_step_2, result = (
        load_file(Path(folder) / "adapter_model.safetensors") for folder in (last.path, earlier.path, trained.adapter)
    )
    assert of_step_4.keys() == of_step_2.keys() == result.keys()
    assert all((of_step_4[name] == result[name]).all() for name in result)
    assert any((of_step_2[name] != result[name]).any() for name in result)
    written, saved = (json.loads((Path(f) / "adapter_config.json").read_text()) for f in (last.path, trained.adapter))
    assert all(written[name] == saved[name] for name in ("r", "lora_alpha", "peft_type", "use_rslora", "task_type"))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert PeftModel.from_pretrained(model, earlier.path)

    whole = export(tmp_path, trained.path, "merged", step=2)
    again = export(tmp_path, Path(earlier.path), "merged", output=str(tmp_path / "again"))
    assert whole.check.passed
    assert filecmp.cmp(*(Path(each.path) / "model.safetensors" for each in (whole, again)), shallow=False)


def test_a_merged_folder_is_a_model_that_can_be_exported_again(trained: RunDirectory, tmp_path: Path) -> None:
    first = export(tmp_path, trained.path, precision="f32", output=str(tmp_path / "whole"))

    again = export(tmp_path, Path(first.path), precision="f16")

    assert Path(again.path) == tmp_path / "whole-merged-f16"
    assert again.check.passed
    assert any("f32" in note and "f16" in note for note in again.notes)
    with pytest.raises(BackpropError, match="whole model: it has no adapter") as refused:
        export(tmp_path, Path(first.path), "lora")
    assert refused.value.exit_code == 1


def changed(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; ``None`` takes one out."""
    found = {**(json.loads(path.read_text()) if path.is_file() else {}), **values}
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


def test_what_other_readers_look_for_is_in_the_merged_folder(trained: RunDirectory, base: Path, tmp_path: Path) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    rope = {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}
    changed(other / "config.json", rope_parameters=rope, eos_token_id=0)
    changed(other / "tokenizer_config.json", eos_token="<pad>", chat_template=None)

    changed(trained.adapter / "backprop.json", base=None)

    done = export(tmp_path, trained.adapter, model=str(other), output=str(tmp_path / "out"), precision="f16")

    written = json.loads((Path(done.path) / "config.json").read_text())
    assert (written["rope_theta"], written["rope_parameters"]) == (5e5, rope)
    assert written["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert written["torch_dtype"] == written["dtype"] == "float16"
    chat = ChatTokenizer.load(done.path)
    assert chat.template.source == ChatTokenizer.load(other).template.source
    ends = json.loads((Path(done.path) / "generation_config.json").read_text())["eos_token_id"]
    assert sorted(ends) == sorted(chat.end_ids) == sorted(ChatTokenizer.load(other).end_ids)


def zeroed(trained: RunDirectory) -> None:
    file = trained.adapter / "adapter_model.safetensors"
    save_file({name: value * (0 if "lora_B" in name else 1) for name, value in load_file(file).items()}, file)
    changed(trained.adapter / "backprop.json", files={file.name: files.sha256(file)})


def stale(trained: RunDirectory) -> None:
    file = trained.adapter / "adapter_model.safetensors"
    save_file({name: value * 2 for name, value in load_file(file).items()}, file)


def halved(trained: RunDirectory) -> None:
    config = trained.adapter / "adapter_config.json"
    changed(config, lora_alpha=json.loads(config.read_bytes())["lora_alpha"] / 2)


def retemplated(trained: RunDirectory) -> None:
    (trained.adapter / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')


def no_adapter(trained: RunDirectory) -> None:
    shutil.rmtree(trained.adapter)


@pytest.mark.parametrize(
    ("spoil", "asked", "said"),
    [
        (zeroed, {}, "[RUNTIME_EXPORT_FAILED] the adapter in {run}/adapter was never trained"),
        (
            stale,
            {},
            "[STATE_CHECKPOINT_INVALID] the result is not the one that was trained: {run}/adapter/adapter_model",
        ),
        (halved, {}, "[STATE_CHECKPOINT_INVALID] the result is not the one that was trained: {run}/adapter/adapter_c"),
        (retemplated, {}, "[STATE_CHECKPOINT_INVALID] the result is not the one that was trained: {run}/adapter/tok"),
        (no_adapter, {}, "[INPUT_VALIDATION_FAILED] run {id} (done) has no trained adapter"),
        (None, {"step": 77}, "[INPUT_VALIDATION_FAILED] run {id} has no good checkpoint of step 77"),
        (None, {"precision": "q4_k_m"}, "[INPUT_VALIDATION_FAILED] merged is not written in 'q4_k_m'"),
        (None, {"form": "onnx"}, "[INPUT_VALIDATION_FAILED] there is no format 'onnx'"),
        (None, {"model": "/gone"}, "[DEP_MODEL_LOAD_FAILED] there is no model directory /gone"),
    ],
)
def test_what_is_not_the_trained_model_is_refused(
    trained: RunDirectory, tmp_path: Path, spoil: Callable[[RunDirectory], None] | None, asked: Any, said: str
) -> None:
    if spoil:
        spoil(trained)

    with pytest.raises(BackpropError) as refused:
        export(tmp_path, trained.path, **asked)

    message = f"[{refused.value.code}] {refused.value.message}"
    assert message.startswith(said.format(run=trained.path, id=trained.run_id))
    assert (refused.value.exit_code == 1) == message.startswith("[INPUT")
    assert refused.value.hint
    assert "wait" not in refused.value.hint
    assert not (trained.path / "exports").exists()


@pytest.mark.parametrize("spoil", [zeroed, stale, halved, retemplated])
def test_an_adapters_folder_is_no_way_around_that(
    trained: RunDirectory, tmp_path: Path, spoil: Callable[[RunDirectory], None]
) -> None:
    spoil(trained)

    with pytest.raises(BackpropError, match=r"never trained|not the file"):
        export(tmp_path, trained.adapter)


def test_another_base_than_the_one_that_was_trained_on_is_refused(
    trained: RunDirectory, base: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(base, tmp_path / "other")
    file = other / "model.safetensors"
    save_file({name: value * 2 for name, value in load_file(file).items()}, file, {"format": "pt"})

    for source in (trained.path, trained.adapter):
        with pytest.raises(BackpropError, match=r"model\.safetensors was changed") as refused:
            export(tmp_path, source, model=str(other))
        assert refused.value.code == "STATE_IDENTITY_MISMATCH"


def test_nothing_that_exists_is_replaced(trained: RunDirectory, tmp_path: Path) -> None:
    target = tmp_path / "here"
    target.mkdir()

    with pytest.raises(BackpropError, match="here exists already") as refused:
        export(tmp_path, trained.path, output=str(target))

    assert refused.value.exit_code == 1
    assert list(target.iterdir()) == []


def test_a_disk_without_room_is_noticed_before_anything_is_written(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=20_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    export(tmp_path, trained.path, output=str(tmp_path / "small"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=16_800_000))

    with pytest.raises(BackpropError, match=r"needs .* kB and 16\.8 MB to spare, 16\.8 MB are free") as refused:
        export(tmp_path, trained.path)

    assert (refused.value.code, refused.value.exit_code) == ("RUNTIME_DISK_FULL", 2)
    assert listed(trained.path / "exports") == []


def test_a_disk_that_fills_meanwhile_is_said_and_nothing_is_left(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = sharded.as_stored

    def fill(name: str, values: Any, dtype: str) -> Any:
        if "layers.1" in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written(name, values, dtype)

    monkeypatch.setattr(sharded, "as_stored", fill)

    with pytest.raises(BackpropError, match="merged-bf16 could not be written: No space left") as refused:
        export(tmp_path, trained.path)

    assert refused.value.code == "RUNTIME_DISK_FULL"
    assert list((trained.path / "exports").iterdir()) == []


def test_what_was_predicted_is_what_is_written(trained: RunDirectory, tmp_path: Path) -> None:
    done = export(tmp_path, trained.path, precision="f16")
    file = export(tmp_path, trained.path, "gguf", precision="q8_0", answers=False)

    source = open_source(ExportRequest(source=str(trained.path), format="merged"), lambda message: None, tmp_path)

    assert done.bytes <= merged.predicted_bytes(source, "f16") <= done.bytes * 1.2
    assert file.bytes <= gguf_format.predicted_bytes(source, "q8_0") <= file.bytes + 2**21
    assert lora.predicted_bytes(source, "f32") == sum(path.stat().st_size for path in trained.adapter.iterdir())


def test_a_proof_that_fails_leaves_nothing_and_says_what_failed(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = sharded.as_stored
    monkeypatch.setattr(
        sharded,
        "as_stored",
        lambda name, values, dtype: written(name, values * (1.1 if "up_proj" in name else 1), dtype),
    )

    with pytest.raises(BackpropError, match=r"tensors: .*up_proj") as refused:
        export(tmp_path, trained.path)

    assert (refused.value.code, refused.value.exit_code) == ("RUNTIME_EXPORT_FAILED", 2)
    assert listed(trained.path / "exports") == []


def test_a_model_that_answers_otherwise_is_noticed(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged.sharded, "largest_deviation", lambda *_: (0.0, ""))
    written = sharded.as_stored
    monkeypatch.setattr(sharded, "as_stored", lambda name, values, dtype: written(name, values * 1.3, dtype))

    with pytest.raises(BackpropError, match=r"logits: .* nats"):
        export(tmp_path, trained.path)


def test_a_killed_export_leaves_nothing(trained: RunDirectory) -> None:
    exports = trained.path / "exports"
    jobs: list[EngineJob] = []
    left: list[list[str]] = []

    def stop(message: Any) -> None:
        if exports.is_dir() and listed(exports) and not left:
            left.append(listed(exports))
            jobs[0].stop()

    with pytest.raises(EngineCrashedError):
        export_model(ExportRequest(source=str(trained.path), format="merged"), stop, jobs.append)

    assert left
    assert list(exports.iterdir()) == []


ASKER = """
import os, sys
from backprop.core.jobs import ExportRequest
from backprop.runs.engine_jobs import engine_job
request = ExportRequest(source=sys.argv[1], format="gguf", precision="f32")
with engine_job("talking_export", request) as job:
    for message in job.messages():
        if getattr(message, "done", 0) == 40:
            print(job._process.pid, flush=True)
            os.kill(os.getpid(), 9)
"""


def test_an_export_whose_asker_is_killed_ends_while_it_says_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    fixtures = str(Path(__file__).parents[1] / "fixtures")
    asker = subprocess.run(
        [sys.executable, "-c", ASKER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": fixtures},
        stdout=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    assert asker.returncode == -9
    with suppress(ProcessLookupError):
        left = os.pidfd_open(int(asker.stdout))
        ended, _, _ = select.select([left], [], [], 60)
        os.close(left)
        assert ended, "the export goes on without anybody"
    assert list((tmp_path / "exports").iterdir()) == []


def test_two_exports_at_once_are_two_exports(trained: RunDirectory, engine_host: EngineHost) -> None:
    results: dict[str, Any] = {}

    def work(precision: str, name: str) -> None:
        request = ExportRequest(source=str(trained.path), format="merged", precision=precision, answers=False)
        try:
            results[name] = export_model(request, lambda message: None)
        except BackpropError as error:
            results[name] = error

    threads = [threading.Thread(target=work, args=each) for each in (("f32", "a"), ("f32", "b"), ("f16", "c"))]
    with engine_host.in_use():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    same = [results["a"], results["b"]]
    assert isinstance(results["c"], Exported)
    (done,) = [each for each in same if isinstance(each, Exported)]
    (refused,) = [each for each in same if isinstance(each, BackpropError)]
    assert refused.exit_code == 1
    assert "exists already" in refused.message
    assert done.check.passed
    assert sorted(path.name for path in (trained.path / "exports").iterdir()) == ["merged-f16", "merged-f32"]


def test_a_failed_comparison_is_named() -> None:
    check = Check(
        passed=False,
        compared=[
            Comparison(name="vocabulary", passed=True, detail="fine"),
            Comparison(name="template", passed=False, detail="another one"),
        ],
    )
    for format, failing in {"gguf": GGUFError, "lora-gguf": GGUFError, "lora": LoRAExportError}.items():
        with pytest.raises(failing, match="template: another one") as refused:
            job.require_passed(check, format)
        assert refused.value.code == failing.code != ExportError.code
        assert "vocabulary" not in refused.value.message


def test_a_run_becomes_one_gguf_file_that_was_proved(trained: RunDirectory, tmp_path: Path) -> None:
    done = export(tmp_path, trained.path, "gguf", precision="f16", answers=False)
    earlier = export(tmp_path, trained.path, "gguf", precision="f16", step=2, answers=False)

    names = [f"tiny-f16{step}.gguf" for step in ("", "-step-2")]
    assert sorted(path.name for path in (trained.path / "exports").iterdir()) == sorted(names)
    assert Path(done.path).name == names[0]
    assert done.check.passed
    assert {"tensors", "vocabulary", "tokenization"} <= {each.name for each in done.check.compared}
    assert done.bytes == Path(done.path).stat().st_size
    file, before = GGUFReader(done.path), GGUFReader(earlier.path)
    assert file.fields["general.run_id"].contents() == trained.run_id
    assert len(file.fields["general.data_hash"].contents()) == 64
    assert any((now.data != then.data).any() for now, then in zip(file.tensors, before.tensors, strict=True))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rms_norm_eps": "x"}, "config.json: a setting .* 'x'"),
        ({"rms_norm_eps": None}, "config.json: a setting .*rms_norm_eps"),
        ({"architectures": ["OPTForCausalLM"]}, "{base}/config.json: OPTForCausalLM cannot be written as GGUF"),
    ],
)
def test_settings_that_cannot_be_written_are_named_in_the_persons_file(
    base: Path, tmp_path: Path, settings: Any, said: str
) -> None:
    model = shutil.copytree(base, tmp_path / "mine")
    changed(model / "config.json", **settings)

    with pytest.raises(BackpropError) as refused:
        export(tmp_path, model, "gguf")

    assert re.match(said.format(base=model), refused.value.message)
    assert refused.value.hint


def test_a_gguf_that_is_not_the_model_leaves_nothing(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gguf_format.write_gguf
    monkeypatch.setattr(
        gguf_format, "write_gguf", lambda *words, template, **rest: write(*words, template=f"{template}!", **rest)
    )

    with pytest.raises(BackpropError, match="chat template: ") as refused:
        export(tmp_path, trained.path, "gguf", precision="q8_0")

    assert refused.value.code == "RUNTIME_GGUF_EXPORT_FAILED"
    assert listed(trained.path / "exports") == []
