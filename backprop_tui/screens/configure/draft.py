"""The run as it is chosen so far: from what was chosen to every value, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from backprop.core import saved_settings
from backprop.core.definition import Setting, all_settings
from backprop.core.errors import BackpropError
from backprop.core.locate import locate
from backprop.core.models import require_model
from backprop.core.multi_run import require_mergeable
from backprop.core.presets import default_model
from backprop.core.resolve import Origin, Resolution, resolve
from backprop.core.settings import MultiConfig, RunConfig
from backprop.data.startable import require_rows
from backprop.hardware.devices import Info
from backprop.hardware.fit import require_size

from backprop_tui.hints import hint_here
from backprop_tui.screens.configure.form import changes

MISSING = "name a dataset"
PATHS = ("data", "model", "held_out", "output_dir")


class Draft:
    """What was chosen; whoever changed it calls ``resolve``."""

    def __init__(self) -> None:
        self.given: dict[str, Any]
        """What was chosen on this screen, by setting."""
        self.file: str
        """The saved configuration under it."""
        self.machine: Info | None = None
        self.found: Resolution
        self.wrong: dict[str, str]
        self.config: RunConfig | None
        """The run, located, where nothing is wrong with it."""
        self.multi: MultiConfig | None
        """What makes it a session of several runs."""
        self.before: tuple[dict[str, Any], str] | None = None
        """What was chosen by hand and under it when others took its place; ``None`` where nothing was."""
        self._touched = False
        """Something was chosen by hand and is in no file."""
        self.begin({})

    def set(self, name: str, value: Any) -> None:
        """Choose a value, text or not; ``None`` takes the default again. Of steps and epochs the newer one counts."""
        self._touched = True
        self.given.pop(name, None)
        if value is not None:
            setting = all_settings().get(name)  # a preset is none
            several = isinstance(value, str) and setting is not None and setting.kind == "repeated"
            self.given[name] = value.split(" | ") if several else value
            if name in ("steps", "epochs"):
                self.given.pop("epochs" if name == "steps" else "steps", None)
        self.resolve()

    def unset(self, setting: Setting) -> None:
        """The default again, also where a file or a variable under the screen says another value."""
        self.set(setting.name, None)
        if setting.name in changes(self.found):
            self.given[setting.name] = setting.default
            self._touched = True
            self.resolve()

    def save(self, name: str) -> str:
        """Save what was chosen under a name, its paths whole, and begin from that; where it was saved.

        Raises:
            InputError: it is no name.
        """
        given = self.found.given()
        values = {each: getattr(self.config, each) if self.config and each in PATHS else given[each] for each in given}
        if self.multi is not None:  # a preset's number of runs may have given way to that of the datasets
            values |= {"tasks": self.multi.tasks, "runs": self.multi.runs}
        path = saved_settings.save(name, values, replace=True)
        self._touched = False
        self.begin({}, name)
        return str(path)

    def begin(self, values: Mapping[str, Any], file: str = "") -> None:
        """Begin anew with these values, over those that were saved under a name."""
        if self._touched:
            self.before = self.given, self.file
        self.given, self.file, self._touched = dict(values), file, False
        self.resolve()

    def resolve(self) -> None:
        """Find every value, and what is wrong."""
        self.found = resolve(self.given, kind="screen", file=self.file or None)
        self.wrong, self.config, self.multi = {}, None, None
        if self.found.several and (tasks := self.found.values["tasks"]):
            self.found.values["data"] = tasks[0]
        if self.machine is not None and self.found.origins["model"].kind == "default":
            backend = self.found.values["backend"]
            self.found.values["model"], why = default_model(backend, gpu=self.machine.gpu_problem is None)
            self.found.origins["model"] = Origin("rule", reason=why)
        for error in self.found.errors:
            self._blame(error, otherwise="a settings file")
        if not self.found.values["data"]:
            self.wrong["data"] = MISSING
        if not self.wrong:
            try:
                self._locate()
            except BackpropError as error:
                self._blame(error)

    def _locate(self) -> None:
        config = require_rows(locate(self.found.config()))
        require_model(config.model)
        require_size(config)
        if self.found.several:
            multi = self.found.multi()
            named = [msgspec.structs.replace(config, data=each) for each in multi.tasks]
            multi.tasks = [require_rows(locate(each)).data for each in named] or [config.data]
            require_mergeable(config, multi)
            self.multi = multi
        self.config = config

    def _blame(self, error: BackpropError, otherwise: str = "data") -> None:
        field = str(error.details.get("field") or ("model" if "model" in error.details else otherwise))
        words = "; ".join(filter(None, [error.message, hint_here(error.hint)]))
        self.wrong.setdefault(field, f"{words} ({error.code})")
