"""Beside the form: what the setting under the cursor means, what the run would be, the memory that it takes of the card
of this machine, and the command that starts it."""

from __future__ import annotations

from collections.abc import Sequence

from backprop.core.definition import Setting
from backprop.core.errors import BackpropError
from backprop.core.models import find_architecture
from backprop.core.resolve import Origin
from backprop.core.settings import RunConfig
from backprop.data.plan import Plan
from backprop.hardware.devices import CardFacts
from backprop.hardware.estimate import Parts, Shape, estimate, parameters, trained_parameters
from backprop.hardware.fit import Change, changes, fitted
from backprop.runs.measured import Measured, Peaks, of_shape
from msgspec import Struct

from backprop_tui.keys import press
from backprop_tui.text import Row, count, from_home, parameters_text, safe, short_number
from backprop_tui.widgets.cells import bar, cut, heading, labelled, paragraph
from backprop_tui.widgets.text_view import TextView

_LABEL = 10


class MemoryOutlook(Struct, kw_only=True):
    """What is known of a run's memory. Bytes."""

    parts: Parts | None = None
    trained_parameters: int = 0
    card: CardFacts | None = None
    measured: Measured | None = None
    """What an earlier run of this shape took."""
    changes: list[Change] = []
    """What would save memory, where the run does not fit."""
    unknown: str = ""
    """Why nothing can be said."""

    @property
    def short(self) -> bool:
        """Whether it does not fit."""
        free = self.card.vram_free if self.card else None
        return self.parts is not None and free is not None and self.parts.total > free


def memory_of(config: RunConfig, card: CardFacts | None, peaks: Peaks) -> MemoryOutlook:
    """What ``config`` takes of ``card``, or would take of one where there is none; ``peaks`` are earlier runs'."""
    free = card.vram_free if card else None
    try:
        model = find_architecture(config.model)
        config = fitted(config, free or 0).config
        shape = Shape.of(config, memory=free)
    except BackpropError as error:
        return MemoryOutlook(unknown=error.message, card=card)
    found = MemoryOutlook(parts=estimate(model, shape), trained_parameters=trained_parameters(model, shape), card=card)
    found.measured = of_shape(peaks, shape.settings(config))
    if found.short and free is not None:
        found.changes = changes(model, shape, free)
    return found


def size_of(name: str) -> str:
    """How many parameters a model has, as its configuration says; empty where that cannot be told."""
    try:
        return parameters_text(parameters(find_architecture(name)))
    except BackpropError:
        return ""


class Outlook(Struct, kw_only=True):
    """What is known of the run before its start."""

    setting: Setting | None = None
    origin: Origin | None = None
    wrong: str = ""
    """What is wrong with the setting."""
    reason: str = ""
    """Why the rule chose its value."""
    problem: str = ""
    """The first of what is wrong, whichever setting the cursor is on: the run cannot start."""
    data: str = ""
    """The dataset in words, or why nothing is known of it."""
    plan: Plan | None = None
    whole: bool = True
    """Every row was counted."""
    takes: str = ""
    """How long the run would take, where it is known: ``about 1 h 02 min``."""
    pace: str = ""
    """What it is known by."""
    memory: MemoryOutlook | None = None
    warnings: Sequence[str] = ()
    command: str = ""


class About(TextView):
    """The outlook: everything where there is room, else a few rows of it."""

    outlook = Outlook()

    def show(self, outlook: Outlook) -> None:
        self.outlook = outlook
        self.redraw()

    def content(self, width: int) -> list[Row]:
        known = self.outlook
        rows = setting_rows(known, width)
        if self.size.height < 16:
            summary = plan_summary(known)
            rows = rows[:4]
            rows += [cut([("data      ", "muted"), *summary], width)]
            if known.memory is not None and known.memory.parts is not None:
                rows.append(cut([("memory    ", "muted"), *memory_rows(known.memory, width - _LABEL)[0]], width))
            rows += [cut([("! ", "warn"), (safe(text), "warn")], width) for text in known.warnings[:2]]
            return [*rows, cut([("$ ", "muted"), (safe(known.command), "text")], width)]
        rows += [[], heading("the run", width), *plan_rows(known, width)]
        if known.memory is not None:
            rows += [[], heading("memory", width), *memory_rows(known.memory, width)]
        if known.warnings:
            rows += [[], heading("worth knowing", width)]
            for text in known.warnings:
                rows += labelled("! ", text, width, "warn", label_ink="warn")
        if known.command:
            copies = f"{press('configure.copy')} copies it"
            rows += [[], heading("the same from a shell", width, copies), *paragraph(known.command, width)]
        return rows


def setting_rows(known: Outlook, width: int) -> list[Row]:
    """Meaning, range, default and origin of the setting under the cursor."""
    setting = known.setting
    if setting is None:
        return [[(f"{press('configure.change')} shows the other settings", "muted")]]
    takes = ", ".join(filter(None, [", ".join(setting.choices), setting.range]))
    unit = f" {setting.unit}" if setting.unit else ""
    rows = [heading(setting.name, width, " ".join(setting.flags[:1])), *paragraph(setting.help, width)]
    if known.wrong:
        rows += labelled("✗ ", known.wrong, width, "bad", label_ink="bad")
    if takes:
        rows += labelled(f"{'takes':<{_LABEL}}", takes + unit, width)
    if setting.shown_default:
        rows += labelled(f"{'default':<{_LABEL}}", setting.shown_default, width)
    if known.reason:
        rows += labelled(f"{'because':<{_LABEL}}", known.reason, width)
    if known.origin is not None and known.origin.kind not in ("default", "screen"):
        rows += labelled(f"{'is from':<{_LABEL}}", str(known.origin), width)
    return rows


def plan_summary(known: Outlook) -> Row:
    """The run in one row."""
    planned = known.plan
    if planned is None:
        return [(f"✗ {safe(known.problem)}", "bad") if known.problem else (safe(known.data), "text")]
    steps = planned.schedule.steps
    words = f"{count(planned.rows)} rows · {count(steps)} steps · {short_number(planned.trained_tokens)} trained tokens"
    return [(words, "strong"), (f" · {known.takes}" if known.takes else "", "text")]


def plan_rows(known: Outlook, width: int) -> list[Row]:
    """The run in full."""

    def line(label: str, text: str, ink: str = "text") -> list[Row]:
        return labelled(f"{label:<{_LABEL}}", text, width, ink)

    if known.problem:
        return labelled("✗ ", known.problem, width, "bad", label_ink="bad")
    rows = line("data", known.data) if known.data else []
    planned = known.plan
    if planned is None:
        return rows
    schedule, limit = planned.schedule, planned.limit
    far = "" if known.whole else " so far"
    held_out = f", {count(planned.held_out)} held out" if planned.held_out else ""
    rows += line("rows", f"{count(planned.rows)} trained{held_out}{far}", "strong")
    lost = [(planned.unusable, "unusable"), (planned.left_out, "left out"), (limit.answer_lost, "answers lost")]
    lost.append((limit.cut, "cut"))
    if any(number for number, _ in lost):
        rows += line("", ", ".join(f"{count(number)} {word}" for number, word in lost if number), "warn")
    passes = f"{planned.passes:.2g} pass{'' if planned.passes == 1 else 'es'}"
    rows += line("steps", f"{count(schedule.steps)} of {schedule.rows_per_step} rows: {passes}", "strong")
    share = 100 * planned.trained_tokens / max(1, planned.tokens)
    rows += line("tokens", f"{short_number(planned.tokens)}, {share:.0f} % trained")
    if known.takes:
        rows += line("takes", f"{known.takes}, {known.pace}")
    return rows


def memory_rows(known: MemoryOutlook, width: int) -> list[Row]:
    """The bar, what the memory is for, and what would make it fit."""
    if known.parts is None:
        return labelled("", from_home(known.unknown), width, "muted") if known.unknown else []
    parts, total = known.parts, known.parts.total
    free = known.card.vram_free if known.card else None
    if free is None:
        rows: list[Row] = [[(gib(total), "strong"), (" of a card; there is none here", "muted")]]
    else:
        ink = "bad" if total > free else "warn" if total > 0.9 * free else "good"
        words = f"{gib(total)} of {gib(free)} free  "
        rows = [[(words, "strong"), *bar(total / free, max(6, width - len(words)), ink)]]
    named = {"weights": parts.weights, "optimizer": parts.gradients + parts.optimizer}
    named |= {"activations": parts.activations, "logits": parts.logits}
    rows += labelled("", " · ".join(f"{name} {gib(number)}" for name, number in named.items()), width, "muted")
    if known.measured is not None:
        rows += labelled("measured  ", str(known.measured), width)
    for change in known.changes[:4]:
        fits = ", and it fits" if change.fits else ""
        rows.append(
            [
                (f"{press('configure.make-it-fit')} ", "key+bold"),
                (f"{change.setting} {change.value}", "text"),
                (f" saves {gib(change.saves)}{fits}", "muted"),
            ]
        )
    return rows


def gib(number: int) -> str:
    """Bytes in the unit that cards are sold by, whatever they call it."""
    return f"{number / 2**30:.1f} GiB"
