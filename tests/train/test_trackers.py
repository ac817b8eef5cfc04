"""Trackers get what a run emits, and whatever becomes of them, training goes on."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest
from backprop.core import events as ev
from backprop.core.errors import BackpropError, InvalidSettingError
from backprop.core.events import Evaluated, PhaseChanged, RunFinished, RunStarted, Step
from backprop.core.settings import RunConfig
from backprop.runs.directory import RunDirectory
from backprop.train import __main__ as engine
from backprop.train.tracking import trackers
from backprop.train.tracking.spans import wanted
from backprop.train.tracking.trackers import TRACKERS, Trackers, chosen
from msgspec.structs import replace
from runs_in_process import Asking, of

FAKES = Path(__file__).parents[1] / "fixtures" / "trackers"
KEY = "0123456789" * 4
RUN = "20261127-abcdef-123456"
LOCAL = {"WANDB_MODE": "offline", "TENSORBOARD_LOGGING_DIR": "/curves", "MLFLOW_TRACKING_URI": "sqlite:///m.db"}
EVERY = {**LOCAL, "TRACKIO_PROJECT": "p"}
STARTED = RunStarted(
    config={"learning_rate": 0.1, "data": "https://me:secret@host/d", "steps": 2}, output_dir="", pid=1
)


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What stand-ins of all trackers were told."""
    monkeypatch.syspath_prepend(FAKES)
    monkeypatch.setenv("TRACKER_TOLD", str(tmp_path / "told.jsonl"))
    importlib.import_module("tensorboard").replace_torch(monkeypatch)
    yield importlib.import_module("told").told
    for name in ("told", *TRACKERS):
        sys.modules.pop(name, None)


def step(number: int) -> Step:
    return Step(
        step=number,
        total_steps=2,
        loss=1.0 / number,
        learning_rate=0.1,
        grad_norm=None,
        tokens_per_second=10.0,
        tokens_seen=number,
        epoch=number / 2,
        metrics={"margin": 0.5},
    )


def finished(status: ev.EndStatus = "done") -> RunFinished:
    return RunFinished(status=status, steps=2, final_loss=0.5, output_path="", duration_seconds=1.0, samples_seen=2)


def track(directory: Path, emitted: list[ev.Event], *events: ev.Event, names: list[str] | None = None) -> None:
    with Trackers(names or list(TRACKERS), RUN, directory, emitted.append) as made:
        for event in events:
            made.emit(event)


@pytest.mark.parametrize(
    ("given", "netrc", "used"),
    [
        ({"WANDB_API_KEY": KEY}, "", True),
        ({"WANDB_API_KEY": "  "}, "", False),
        ({}, "machine api.wandb.ai login user password KEY", True),
        ({}, "machine api.wandb.ai login user password ''", False),
        ({}, "machine example.org login user password KEY", False),
        ({}, "default login user password KEY", False),
        ({}, "machine broken", False),
        ({"WANDB_BASE_URL": "https://w.example.org"}, "machine w.example.org login user password KEY", True),
        ({"WANDB_BASE_URL": "https://w.example.org"}, "machine api.wandb.ai login user password KEY", False),
        ({"WANDB_MODE": "offline"}, "", True),
        ({"WANDB_MODE": "disabled"}, "", True),
        ({"WANDB_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}, "", False),
    ],
)
def test_wandb_is_used_with_credentials_skipped_with_a_hint_and_refused_where_it_was_named(
    told: Any, tmp_path: Path, given: dict[str, str], netrc: str, used: bool
) -> None:
    (tmp_path / "netrc").write_text(netrc.replace("KEY", KEY).replace("''", '""') + "\n")
    given = {"NETRC": str(tmp_path / "netrc"), **given}

    names, notes = chosen(None, given)

    assert names == (["wandb"] if used else [])
    assert [note.code for note in notes] == ([] if used else ["TRACKER_LEFT_OUT"])
    if used:
        assert chosen(["wandb"], given) == (["wandb"], [])
        return
    assert "WANDB_MODE=offline" in notes[0].hint
    with pytest.raises(InvalidSettingError, match="wandb cannot be used") as caught:
        chosen(["wandb"], given)
    assert caught.value.hint == notes[0].hint


def test_without_names_only_what_is_installed_and_configured_gets_a_run(told: Any) -> None:
    assert chosen(None, EVERY) == (list(TRACKERS), [])
    assert chosen(None, {"WANDB_MODE": "offline"})[0] == ["wandb"]
    assert chosen(["none"], EVERY) == ([], [])
    assert chosen(["trackio", "mlflow", "trackio"], {}) == (["trackio", "mlflow"], [])
    away = {**EVERY, "HF_HUB_OFFLINE": "1", "MLFLOW_TRACKING_URI": "https://m", "TRACKIO_SPACE_ID": "me/space"}
    names, notes = chosen(None, away)
    assert (names, len(notes)) == (["wandb", "tensorboard"], 2)
    with pytest.raises(InvalidSettingError, match="none, or names"):
        chosen(["none", "wandb"], EVERY)


def test_what_is_not_installed_is_an_error_only_where_it_was_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert chosen(None, EVERY) == ([], [])
    for name in TRACKERS:
        with pytest.raises(BackpropError, match=f"{name} is not installed") as caught:
            chosen([name], EVERY)
        assert (caught.value.code, "pip install" in caught.value.hint) == ("DEP_MISSING", True)


def test_every_tracker_gets_the_curves_and_a_resumed_run_goes_on_under_its_name(told: Any, tmp_path: Path) -> None:
    emitted: list[ev.Event] = []
    chosen_later = ev.SettingsChosen(values={"learning_rate": 0.3}, reasons={})
    evaluated = Evaluated(step=2, loss=0.25, tokens=9, rows=1, seconds=0.1)

    track(tmp_path, emitted, STARTED, chosen_later, step(1), step(2), evaluated, finished())
    track(tmp_path, emitted, replace(STARTED, resumed_from=1), step(2), finished("stopped"))

    assert [event.type for event in emitted][:6] == [
        *("run_started", "settings_chosen", "step", "step", "evaluated", "run_finished")
    ]
    assert len(emitted) == 9
    for name in TRACKERS:
        calls = [call for call in told() if call["tracker"] == name]
        begun = [call for call in calls if call["what"] == "start"]
        assert len({call["id"] for call in begun}) == 1
        assert len(begun) == len([call for call in calls if call["what"] == "finish"]) == 2
        values = [(call.get("step", call["values"].get("step")), call["values"]) for call in calls if "values" in call]
        losses = [(at, each["train/loss"]) for at, each in values if "train/loss" in each]
        assert losses == [(1, 1.0), (2, 0.5), (2, 0.5)]
        assert {each["train/margin"] for _, each in values if "train/margin" in each} == {0.5}
        assert [(at, each["eval/loss"]) for at, each in values if "eval/loss" in each] == [(2, 0.25)]
        assert not any("train/grad_norm" in each for _, each in values)
        assert {call["name"] for call in begun} == {"tensorboard" if name == "tensorboard" else f"backprop-{RUN[:8]}"}
        for call in begun[:1]:
            if "config" in call:
                assert (call["config"]["learning_rate"], "secret" in call["config"]["data"]) == (0.3, False)
    purged = [call["purged"] for call in told() if call["tracker"] == "tensorboard" and "purged" in call]
    assert purged == [None, 2]
    statuses = [call["status"] for call in told() if call["tracker"] == "mlflow" and call["what"] == "finish"]
    assert statuses == ["FINISHED", "FINISHED"]


def test_a_run_that_fails_is_finished_as_failed(told: Any, tmp_path: Path) -> None:
    def failing(event: ev.Event) -> None:
        if event is last:
            raise RuntimeError("the run")

    last = step(2)
    with pytest.raises(RuntimeError, match="the run"), Trackers(["wandb"], RUN, tmp_path, failing) as made:
        any(made.emit(event) for event in (STARTED, step(1), last))
    assert told()[-1] == {"tracker": "wandb", "what": "finish", "status": 1}


@pytest.mark.parametrize("what", ["start", "log", "finish"])
def test_a_tracker_that_breaks_costs_one_warning_and_no_event(
    told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("TRACKER_FAILS", what)
    emitted: list[ev.Event] = []

    track(tmp_path, emitted, STARTED, step(1), step(2), finished(), names=["wandb"])

    (warning,) = of(emitted, ev.Warning)
    assert warning.code == "TRACKER_FAILED"
    assert "wandb failed" in warning.message
    assert "ConnectionError: the server of the tracker is gone" in warning.message
    emitted.remove(warning)
    assert [event.type for event in emitted] == ["run_started", "step", "step", "run_finished"]


def test_a_tracker_that_hangs_never_holds_the_run(told: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "MOST_WAITING", 3)
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 0.0)
    answers = threading.Event()
    wandb = importlib.import_module("wandb")
    monkeypatch.setattr(wandb.Run, "log", lambda self, values: answers.wait())
    emitted: list[ev.Event] = []
    made = Trackers(["wandb"], RUN, tmp_path, emitted.append)

    for event in (STARTED, *(step(number) for number in range(1, 20))):
        made.emit(event)
    made.finish("done", seconds=0.0)
    made.emit(finished())
    answers.set()

    assert len(of(emitted, Step)) == 19
    assert isinstance(emitted[-1], RunFinished)
    messages = [each.message for each in of(emitted, ev.Warning)]
    assert [" ".join(message.split()[:3]) for message in messages] == ["wandb is too", "wandb did not"]


def test_an_engine_reports_what_it_was_asked_to_and_goes_on_with_it(
    told: Any, tiny_config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*verb: str) -> list[ev.Event]:
        monkeypatch.setattr(sys, "argv", ["engine", str(directory.path), *verb])
        engine.train(directory, events.append, Asking(events))  # type: ignore[arg-type]
        return events

    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    events: list[ev.Event] = []
    directory = RunDirectory.create(replace(tiny_config, steps=2, report_to=["wandb"]))

    with pytest.raises(InvalidSettingError, match=r"wandb cannot be used: there is no key for api\.wandb\.ai"):
        work("start")

    assert (events, told()) == ([], [])
    monkeypatch.setenv("WANDB_MODE", "offline")
    work("start")
    work("extend", "3")
    begun = [call for call in told() if call["what"] == "start"]
    assert [call["name"] for call in begun] == [f"backprop-{directory.run_id[:8]}"] * 2
    assert {call["id"] for call in begun} == {directory.run_id}
    assert {call["config"]["gradient_accumulation"] for call in begun} == {2}
    losses = {call["values"]["step"]: call["values"]["train/loss"] for call in told() if call["what"] == "log"}
    assert losses == {event.step: event.loss for event in of(events, Step)}
    assert sorted(losses) == [1, 2, 3]
    assert not [each for each in of(events, ev.Warning) if each.code.startswith("TRACKER")]


class Span:
    def __init__(self, name: str, attributes: Any = None, start_time: int = 0, context: Any = None) -> None:
        self.name, self.attributes, self.began, self.within = name, dict(attributes or {}), start_time, context
        self.ended = self.status = None

    def set_attribute(self, name: str, value: str) -> None:
        self.attributes[name] = value

    def set_status(self, status: Any) -> None:
        self.status = status

    def end(self, at: int) -> None:
        self.ended = at


def test_phases_are_spans_within_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[Span] = []
    done: list[str] = []

    def begin(name: str, **more: Any) -> Span:
        made.append(Span(name, **more))
        return made[-1]

    provider = SimpleNamespace(
        add_span_processor=done.append,
        get_tracer=lambda name: SimpleNamespace(start_span=begin),
        shutdown=lambda: done.append("sent"),
    )
    modules = {
        "opentelemetry.trace": {"set_span_in_context": lambda span: span},
        "opentelemetry.sdk.trace": {"TracerProvider": lambda: provider},
        "opentelemetry.sdk.trace.export": {"BatchSpanProcessor": lambda exporter: exporter},
        "opentelemetry.exporter.otlp.proto.http.trace_exporter": {"OTLPSpanExporter": lambda: "exporter"},
    }
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    config = msgspec.to_builtins(RunConfig(data="d", model="m"))
    events = [
        RunStarted(config=config, output_dir="", pid=1, time=1.0),
        PhaseChanged(phase="loading_model", time=2.0),
        PhaseChanged(phase="loading_model", detail="50 %", time=3.0),
        PhaseChanged(phase="training", time=4.0),
        step(1),
    ]
    monkeypatch.setattr("backprop.train.tracking.spans.time", SimpleNamespace(time_ns=lambda: 9 * 10**9))

    with Trackers([], RUN, tmp_path, lambda event: None, spans=True) as trackers:
        for event in (*events, finished()):
            trackers.emit(event)

    run, loading, training = made
    assert (run.name, loading.name, training.name) == ("backprop train", "loading_model", "training")
    assert [(each.began, each.ended) for each in made] == [
        (10**9, 9 * 10**9),
        (2 * 10**9, 4 * 10**9),
        (4 * 10**9, 9 * 10**9),
    ]
    assert loading.within is training.within is run
    assert run.attributes == {
        **{"backprop.model": "m", "backprop.method": "sft", "backprop.mode": "auto"},
        **{"backprop.run_id": RUN, "backprop.status": "done"},
    }
    assert done == ["exporter", "sent"]


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318", "HF_HUB_OFFLINE": "1"}, False),
    ],
)
def test_spans_are_made_where_the_standard_variables_name_an_endpoint(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], sent: bool
) -> None:
    assert not wanted(given)  # it is not installed here
    monkeypatch.setattr("backprop.train.tracking.spans.find_spec", lambda name: "found")
    assert wanted(given) is sent
