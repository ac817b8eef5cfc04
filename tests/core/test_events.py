from __future__ import annotations

import json
from typing import get_args

import pytest
from backprop.core import events as ev
from made_events import example


@pytest.mark.parametrize("kind", get_args(ev.AnyEvent), ids=lambda k: k.__name__)
def test_every_event_comes_back_from_its_line_as_it_was(kind: type[ev.Event]) -> None:
    event = example(kind)
    event.run_id, event.seq, event.time = "abc", 7, 1.5
    line = ev.encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert {"type", "schema", "run_id", "seq", "time"} <= json.loads(line).keys()
    assert ev.decode_event(line) == event


@pytest.mark.parametrize("kind", get_args(ev.AnyCommand), ids=lambda k: k.__name__)
def test_every_command_comes_back_from_its_line(kind: type[ev.Command]) -> None:
    assert ev.decode_command(ev.encode(kind())) == kind()


def test_a_step_event_carries_the_keys_that_scripts_rely_on() -> None:
    keys = json.loads(ev.encode(example(ev.Step))).keys()
    assert keys >= {
        "step",
        "total_steps",
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens_per_second",
        "tokens_seen",
        "epoch",
    }


def test_a_loss_that_is_not_finite_is_null_in_json() -> None:
    event = example(ev.Step)
    event.loss = float("nan")
    assert json.loads(ev.encode(event))["loss"] is None


def test_line_breaks_in_text_never_break_a_line() -> None:
    text = "a\nb\r\nc\u2028d"
    line = ev.encode(ev.Warning(code="X", message=text))
    assert line.count(b"\n") == 1
    decoded = ev.decode_event(line)
    assert isinstance(decoded, ev.Warning)
    assert decoded.message == text


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b'{"type":"nonsense"}',
        b'{"type":"step"',
        b"\xff\xfe",
        b'{"type":"step","step":"x"}',
        b'{"type":"heartbeat","run_id":"r","seq":9223372036854775808,"time":1.0}',
        b'{"type":"heartbeat","run_id":"r","seq":1,"time":1e300}',
        b'{"type":"heartbeat","run_id":"r","seq":1,"time":1.0,"step":9223372036854775808}',
        b'{"type":"nonsense","run_id":"r","seq":1,"time":1.0,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=lambda line: line[:40].decode(errors="replace"),
)
def test_what_is_no_event_is_passed_over(line: bytes) -> None:
    assert ev.decode_event(line) is None


def test_keys_of_a_newer_version_are_ignored() -> None:
    line = ev.encode(ev.Heartbeat(step=3)).replace(b'"step":3', b'"step":3,"colour":"blue"')
    decoded = ev.decode_event(line)
    assert isinstance(decoded, ev.Heartbeat)
    assert decoded.step == 3


def test_an_event_of_a_newer_version_keeps_its_place_in_the_order() -> None:
    line = b'{"type":"teleported","schema":2,"run_id":"r","seq":9,"time":1.0,"to":"mars"}'
    decoded = ev.decode_event(line)
    assert isinstance(decoded, ev.Unknown)
    assert (decoded.run_id, decoded.seq) == ("r", 9)
