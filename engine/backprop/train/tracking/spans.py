"""OpenTelemetry: a run as a span, its phases as spans within, sent where the standard variables say."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from backprop.core import paths
from backprop.core.events import Event, PhaseChanged, RunStarted

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NANO = 1_000_000_000


def wanted(given: Mapping[str, str]) -> bool:
    """Whether the variables name an endpoint and turn nothing off, and what is needed to reach it is installed."""
    off = given.get("OTEL_SDK_DISABLED", "").lower() == "true" or given.get("OTEL_TRACES_EXPORTER", "otlp") == "none"
    if off or paths.offline(given) or not any(given.get(name, "").strip() for name in _ENDPOINTS):
        return False
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter") is not None
    except ModuleNotFoundError:  # of one of the packages above it
        return False


class Spans:
    """Makes the spans of one stretch of a run from its events. They begin and end when the events say."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._run: Any = None
        self._phase: Any = None
        self._name = ""
        self._last = 0

    def take(self, event: Event) -> None:
        """A ``run_started`` or ``phase_changed``; all others are nothing but the time."""
        self._last = int(event.time * _NANO)
        if isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, PhaseChanged) and event.phase != self._name and self._run is not None:
            self._end_phase()
            self._name = event.phase
            within = self._trace.set_span_in_context(self._run)
            self._phase = self._tracer.start_span(event.phase, context=within, start_time=self._last)

    def finish(self, status: str) -> None:
        """End the spans and send what is left."""
        if self._run is not None:
            self._last = time.time_ns()
            self._end_phase()
            self._run.set_attribute("backprop.status", status)
            if status == "failed":
                self._run.set_status(self._trace.Status(self._trace.StatusCode.ERROR))
            self._run.end(self._last)
            self._provider.shutdown()

    def _begin(self, event: RunStarted) -> None:
        sdk = import_module("opentelemetry.sdk.trace")
        export = import_module("opentelemetry.sdk.trace.export")
        otlp = import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        os.environ.setdefault("OTEL_SERVICE_NAME", "backprop")
        self._trace: Any = import_module("opentelemetry.trace")
        self._provider = sdk.TracerProvider()
        self._provider.add_span_processor(export.BatchSpanProcessor(otlp.OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("backprop")
        facts = {f"backprop.{name}": str(event.config[name]) for name in ("model", "method", "mode")}
        facts["backprop.run_id"] = self._run_id
        self._run = self._tracer.start_span(f"backprop {event.kind}", attributes=facts, start_time=self._last)

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._phase.end(self._last)
            self._phase = None
