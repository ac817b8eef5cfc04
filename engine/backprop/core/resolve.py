"""From every source to one value for each setting, with the place that it comes from. See ``core.definition``.

The weakest first: defaults, the user's settings file, ``.env`` of the working directory, environment variables, a
configuration that was named (a file, or a saved one), and what was given directly: flags, a screen, the library's
arguments. A training preset stands just below the other values of the source that names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from backprop.core.definition import all_settings, multi_settings, require_all, settings, unknown
from backprop.core.errors import BackpropError, InvalidSettingError
from backprop.core.presets import training_preset
from backprop.core.settings import AppConfig, MultiConfig, RunConfig, override, shown
from backprop.core.settings_sources import Given, Kind, Source, read_dotenv, read_environment, read_settings_file

OF_A_PRESET = ("lora_r", "lora_alpha", "gradient_accumulation")
"""Settings of a training preset that follow others where those are given nearer (``merge``)."""


class Origin(Struct, frozen=True):
    """Where a value comes from: the kind of source, the place in it, a rule's reason. ``str()`` is for people."""

    kind: Kind
    place: str = ""
    reason: str = ""

    def __str__(self) -> str:
        where = self.place or self.kind
        return f"{where}: {self.reason}" if self.reason else where


class Resolution(Struct):
    """Every setting's value and origin, those of the program too, and all that is wrong."""

    values: dict[str, Any]
    origins: dict[str, Origin]
    errors: list[BackpropError]

    def given(self) -> dict[str, Any]:
        """The values that somebody gave, of a session's settings where one is asked for: no defaults, no rule's."""
        names = (*settings(), *(multi_settings() if self.several else ()))
        return {name: self.values[name] for name in names if self.origins[name].kind not in ("default", "rule")}

    @property
    def several(self) -> bool:
        """Whether several runs in sequence are asked for: directly, or by a configuration that was named."""
        asked = (name for name in ("tasks", "runs") if self.origins[name].kind in ("screen", "configuration"))
        return any(self.values[name] for name in asked)

    def config(self) -> RunConfig:
        """The configuration of a run.

        Raises:
            BackpropError: something is wrong; all of it is named.
            InvalidSettingError: there is no data.
        """
        require_all(self.errors)
        if not self.values["data"]:
            raise InvalidSettingError("data is missing", hint=settings()["data"].help, details={"field": "data"})
        return RunConfig(**{name: self.values[name] for name in settings()})

    def multi(self) -> MultiConfig:
        """The settings of a session of several runs. A preset's number of them gives way to that of the datasets.

        Raises:
            BackpropError: something is wrong; all of it is named.
        """
        require_all(self.errors)
        found = MultiConfig(**{name: self.values[name] for name in multi_settings()})
        if len(found.tasks) > 1 and self.origins["runs"].kind == "preset":
            found.runs = None
        return found

    def app(self) -> AppConfig:
        """The settings of the program; defaults where something is wrong with them."""
        return AppConfig(**{name: self.values[name] for name in AppConfig.__struct_fields__})

    def notes(self) -> dict[str, str]:
        """Where each value comes from that is no default, as a run keeps it."""
        ours = (name for name in (*settings(), *multi_settings()) if self.origins[name].kind != "default")
        return {name: str(self.origins[name]) for name in ours}


def standing() -> list[Source]:
    """The sources that are read without being named, the weakest first."""
    return [read_settings_file(), read_dotenv(), read_environment()]


def direct(given: Mapping[str, Any], kind: Kind, place: str = "") -> Source:
    """What was given directly: by flags, on a screen, as the library's arguments. ``preset`` may be among it.

    Args:
        given: of flags also what click has for those that are not there, ``None`` or ``()``.
        place: where all of it comes from; open, the flag's name, or the kind.
    """
    source = Source(kind)
    for name, value in given.items():
        if kind == "flag" and (value is None or value == ()):
            continue
        setting = all_settings().get(name)
        flag = (setting.flag if setting else f"--{name}") if kind == "flag" else ""
        found = Given(value, flag or place or kind, flag or str(name))
        if name == "preset":
            source.preset = found
        elif setting is None:
            what = f"unknown setting {shown(str(name))}"
            source.errors.append(unknown(what, str(name), lambda near: repr(near.name), run=True))
        else:
            source.given[name] = found
    return source


def resolve(
    given: Mapping[str, Any] | None = None, *, kind: Kind = "flag", file: str | Path | None = None
) -> Resolution:
    """Every setting, from all sources.

    Args:
        given: what the person gave directly, texts or plain values, by the settings' names.
        kind: what ``given`` is: ``flag``, ``screen`` or ``argument``.
        file: a configuration: the path of a file, or the name of a saved one.
    """
    from backprop.core.saved_settings import read_configuration

    sources = standing()
    if file is not None:
        sources.append(read_configuration(file))
    return merge([*sources, direct(given or {}, kind)])


def config_from(values: Mapping[str, Any]) -> RunConfig:
    """A configuration from these values alone. Paths may be ``os.PathLike``, numbers those of numerical libraries.

    Raises:
        InvalidSettingError: unknown names (with the nearest known ones) or values outside their range, all at once.
    """
    return merge([direct(values, "argument")]).config()


def merge(sources: list[Source]) -> Resolution:
    """The sources on top of each other, the last one nearest to the person."""
    values = {name: setting.default for name, setting in all_settings().items()}
    origins = {name: Origin("default", reason=setting.rule) for name, setting in all_settings().items()}
    errors: list[BackpropError] = []
    rows_per_step = 0
    for source in sources:
        errors += source.errors
        if source.preset is not None:
            try:
                preset = training_preset(source.preset.value, source.preset.label)
            except InvalidSettingError as error:
                errors.append(error)
            else:
                origin = Origin("preset", f"preset {source.preset.value} ({source.preset.place})")
                values |= preset.settings()
                rows_per_step = preset.effective_batch
                origins |= dict.fromkeys(preset.settings(), origin)
        found: dict[str, Any] = {}
        for name, each in source.given.items():
            try:
                found[name] = all_settings()[name].parse(each.value, each.label)
            except InvalidSettingError as error:
                errors.append(error)
        if found.get("steps") is not None and found.get("epochs", "auto") != "auto":
            both = f"{source.given['steps'].label} and {source.given['epochs'].label} were both given"
            errors.append(all_settings()["epochs"].error(both, "give one of --steps and --epochs"))
        for name, value in override({}, found).items():
            origin = Origin(source.kind, source.given[name].place) if name in found else Origin("default")
            values[name], origins[name] = value, origin
        _adapt(found, values, origins, rows_per_step)
    # A preset is for LoRA by sft: its rate is ten times that of all weights, and more than what a preference bears.
    adapter = ("lora_r", "lora_alpha") if values["mode"] == "full" else ()
    rate = ("learning_rate",) if values["mode"] == "full" or values["method"] != "sft" else ()
    _leave_open([name for name in (*adapter, *rate) if origins[name].kind == "preset"], values, origins)
    return Resolution(values, origins, errors)


def _leave_open(names: Iterable[str], values: dict[str, Any], origins: dict[str, Origin]) -> None:
    for name in names:
        values[name], origins[name] = None, Origin("default", reason=all_settings()[name].rule)


def _adapt(found: dict[str, Any], values: dict[str, Any], origins: dict[str, Origin], rows_per_step: int) -> None:
    """Have what a training preset says follow what was ``found`` nearer: its adapter a LoRA preset, its alpha, twice
    the rank, another rank, and the passes of a step, which are for so many rows, another batch."""
    of_preset = {name for name in OF_A_PRESET if origins[name].kind == "preset"}
    if found.get("lora_preset") is not None:
        _leave_open(of_preset & {"lora_r", "lora_alpha"}, values, origins)
    elif found.get("lora_r") is not None and "lora_alpha" in of_preset:
        values["lora_alpha"] = 2.0 * found["lora_r"]
    if isinstance(batch := found.get("batch_size"), int) and "gradient_accumulation" in of_preset:
        values["gradient_accumulation"] = -(-rows_per_step // batch)
