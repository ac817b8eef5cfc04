"""What the run would be: its plan by the rows that were counted, its memory, and what its rules come to."""

from __future__ import annotations

from functools import partial

import msgspec
from backprop.cli.options import command_line
from backprop.core.definition import Setting, settings
from backprop.core.models import find_tokenizer
from backprop.core.multi_run import advice, runs_of
from backprop.core.settings import RunConfig
from backprop.data.plan import Plan, plan, warnings
from backprop.data.truncate import CountedLengths
from backprop.hardware.fit import first_batch_size, fitted, longest_rows

from backprop_tui.screens.configure.about import MemoryOutlook, Outlook, memory_of
from backprop_tui.screens.configure.counting import Counting
from backprop_tui.screens.configure.draft import Draft
from backprop_tui.screens.configure.form import value_text
from backprop_tui.text import from_home, rows_of


class Forecast:
    """Of a draft, as far as its rows are counted."""

    def __init__(self, draft: Draft, counting: Counting) -> None:
        self._draft, self._counting = draft, counting
        self._planned: tuple[RunConfig, CountedLengths, int, Plan | None] | None = None
        """What the last plan was made of, and the plan."""

    def plan(self) -> Plan | None:
        """The run as far as it is known."""
        config, counted = self._draft.config, self._counting.counted
        if config is None or counted is None or counted.unit != "tokens":
            return None
        free = self._free()
        last = self._planned
        if last is None or last[0] is not config or last[1] is not counted or last[2] != free:
            known, reasons = fitted(config, free)
            most = longest_rows(known, free)
            batch_size = partial(first_batch_size, free=free)
            planned = plan(known, counted, find_tokenizer(config.model), batch_size=batch_size, most=most)
            planned = planned and msgspec.structs.replace(planned, reasons=planned.reasons | reasons)
            self._planned = last = (config, counted, free, planned)
        return last[3]

    def outlook(self, setting: Setting | None) -> Outlook:
        """Everything that is known, with the setting under the cursor."""
        draft, config, counted, planned = self._draft, self._draft.config, self._counting.counted, self.plan()
        found = Outlook(setting=setting, data=self._counting.words, plan=planned)
        found.problem = next(iter(draft.wrong.values()), "")
        if setting is not None:
            found.origin, found.wrong = draft.found.origins[setting.name], draft.wrong.get(setting.name, "")
            found.reason = planned.reasons.get(setting.name, "") if planned else ""
        if config is not None:
            found.command, found.memory = from_home(command_line(config, draft.multi)), self.memory()
            trained = found.memory.trained_parameters if found.memory else 0
            found.warnings = warnings(config, planned, trained)
        if counted is not None:
            found.data, found.whole = f"{found.data}, {rows_of(counted.rows)}", counted.whole
        if draft.multi is not None:
            number, how = runs_of(draft.multi), draft.multi.merge_mode
            found.data = f"{number} runs in sequence, merged by {how}; of the first: {found.data}"
            found.warnings = [*advice(draft.multi), *found.warnings]
        if planned is not None and (pace := self._counting.pace) is not None:
            found.takes, found.pace = pace.takes(planned.tokens), pace.source
        return found

    def memory(self) -> MemoryOutlook | None:
        """What the run takes, with the batch size that it begins with."""
        config, machine = self._draft.config, self._draft.machine
        if config is None or machine is None:
            return None
        card = next((card for card in machine.gpus if card.vram_free is not None), None)
        planned = self.plan()
        config = config if planned is None else planned.chosen
        if config.batch_size == "auto":
            config = msgspec.structs.replace(config, batch_size=first_batch_size(config, self._free()))
        return memory_of(config, card, self._counting.peaks)

    def _free(self) -> int:
        """Bytes that are free on the card that the run would use; 0 where it would use none."""
        machine, backend = self._draft.machine, self._draft.found.values["backend"]
        return max((card.vram_free or 0 for card in machine.gpus), default=0) if machine and backend != "cpu" else 0

    def becomes(self) -> dict[str, str]:
        """What values chosen by rule come to, where that is known."""
        planned = self.plan()
        if planned is None:
            return {}
        values = {name: getattr(planned.chosen, name) for name in settings()}
        values |= {"steps": planned.schedule.steps, "warmup_steps": planned.schedule.warmup_steps}
        if planned.chosen.steps is not None:
            values["epochs"] = round(planned.passes, 2)
        found = {name: value_text(settings()[name], value) for name, value in values.items()}
        return {**found, "held_out": rows_of(planned.held_out)}
