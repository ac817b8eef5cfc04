"""What is known of every setting, read once from the fields of ``RunConfig`` and ``AppConfig``: ``settings()``.

Beside it are ``core.resolve`` (from every source to one value each, with its origin), ``core.saved_settings`` (named
configurations), ``core.rules`` and ``core.schedule`` (what is left open comes to, without a model in memory), and
``cli.options`` (the flags, and the command that gives a configuration).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
import re
from collections.abc import Callable, Iterable
from typing import Any, Literal

import msgspec
from msgspec import Struct, inspect

from backprop.core.errors import InvalidSettingError
from backprop.core.settings import AppConfig, MultiConfig, RunConfig, shown, unwritable

PREFIX = "BACKPROPAGATE_"
Kind = Literal["switch", "value", "list", "repeated", "pairs"]

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|nan|infinity)", re.IGNORECASE)
_SWITCH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_LONGEST_NAME = 120

_OTHERS = {
    "batch_size": "per_device_train_batch_size micro_batch_size train_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "epochs": "num_train_epochs num_epochs",
    "steps": "max_steps num_steps iters",
    "samples": "max_samples max_train_samples",
    "learning_rate": "lr",
    "scheduler": "lr_scheduler lr_scheduler_type",
    "warmup_steps": "num_warmup_steps",
    "max_seq_length": "max_length max_seq_len sequence_len cutoff_len",
    "packing": "sample_packing",
    "lora_r": "lora_rank rank",
    "target_modules": "lora_target lora_target_modules",
    "model": "model_name model_name_or_path base_model",
    "data": "dataset dataset_name dataset_path train_file datasets",
    "held_out": "val_set_size eval_dataset test_size",
    "log_level": "logging_level",
    "max_grad_norm": "gradient_clipping",
    "output_dir": "output",
    "keep_best": "save_total_limit",
    "train_on_responses": "assistant_only_loss completion_only_loss train_on_inputs",
    "gradient_checkpointing": "use_gradient_checkpointing",
    "seed": "random_seed",
    "mode": "finetuning_type adapter load_in_4bit",
    "use_dora": "dora",
    "use_rslora": "rslora",
    "backend": "device",
    "processes": "num_processes nproc_per_node",
}
"""What transformers, TRL, axolotl, LLaMA-Factory, mlx-lm and Unsloth call a setting, by its name here."""
OTHERS = {other: ours for ours, names in _OTHERS.items() for other in names.split()}


class Setting(Struct, frozen=True, kw_only=True):
    """One setting: what it means, what it takes, and how it is written in each place.

    ``kind``: a ``switch`` is on or off; a ``value`` one text or number; a ``list`` names; ``repeated`` texts, each with
    a flag of its own; ``pairs`` are ``a=b``.
    """

    name: str
    section: str
    """One of ``SECTIONS``; empty for a setting of the program."""
    key: str
    """Its name within the section."""
    help: str
    kind: Kind
    type: Any
    choices: tuple[str, ...]
    numbers: tuple[type, ...]
    range: str
    """What numbers it takes, in words: ``at least 1``."""
    unit: str = ""
    default: Any
    rule: str = ""
    """How the value is chosen where none is given, in words; empty where the default is the value."""
    nullable: bool
    common: bool = False
    """People change it often."""
    per_run: bool = False
    """It is given anew for every run, on the command line or beside it: never by a file that is read unasked."""
    flags: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The flag that a message names: ``--lr`` for ``learning_rate``, ``--no-packing`` for ``packing``."""
        return self.off if self.default is True else self.flags[0] if self.flags else ""

    @property
    def off(self) -> str:
        """The flag that turns a switch off; empty for what is no switch."""
        return f"--no-{self.flags[0][2:]}" if self.kind == "switch" else ""

    @property
    def path(self) -> str:
        """Its place in a settings file: ``training.learning_rate``."""
        return f"{self.section}.{self.key}" if self.section else self.key

    @property
    def variable(self) -> str:
        """Its environment variable: ``BACKPROPAGATE_TRAINING__LEARNING_RATE``."""
        return PREFIX + self.path.replace(".", "__").upper()

    @property
    def metavar(self) -> str:
        """What it takes, in short: ``N|auto``."""
        parts = [*("N" if number is int else "X" for number in self.numbers), *self.choices]
        if self._closed and self.nullable and self.rule and "auto" not in self.choices:
            parts.append("auto")
        if self.kind == "switch":
            parts = ["true", "false"]
        fixed = {"pairs": "FIELD=COLUMN", "list": "A,B,…"}.get(self.kind)
        return fixed or "|".join(parts) or "TEXT"

    @property
    def shown_default(self) -> str:
        """The default for people: a value, or the rule that chooses one; empty for what is simply not there."""
        if self.rule:
            return f"by rule: {self.rule}"
        if self.default in (None, [], {}) or self.name == "data":
            return ""
        return str(self.default).lower() if isinstance(self.default, bool) else str(self.default)

    @property
    def _closed(self) -> bool:
        """It takes no text of any kind, so that a word can stand for no value."""
        return bool(self.numbers or self.choices or self.kind != "value")

    def written(self, value: Any) -> Any:
        """``value`` as a file or a flag has it: what was left to the rule on purpose is ``auto``."""
        if value is None and self._closed:
            return "auto" if self.rule else "none"
        return value

    def parse(self, given: Any, label: str = "") -> Any:
        """The value that was given, as text or as a plain value, checked.

        Args:
            given: a text is read as this setting's kind: ``"false"`` is false, ``"1E-4"`` a number. ``auto`` leaves the
                choice to the rule, ``none`` takes an optional number away.
            label: what a message calls the setting: a flag, a variable, a place in a file.

        Raises:
            InvalidSettingError: it is none of the setting's choices, no number where one is needed, or out of range.
        """
        label = label or self.name
        if given is None and self.nullable and self.default == "auto":
            return "auto"
        value = self._read(_plain(given), label)
        problem = unwritable(value)
        if not problem:
            try:
                return msgspec.convert(value, self.type)
            except msgspec.ValidationError as error:
                text, _, place = str(error).partition(" - at `$")
                if not place and text.endswith("of length >= 1"):
                    problem = "it is empty"
                elif not place and any(sign in text for sign in "<>"):
                    problem = f"{self.range}, not {shown(value)}"
                else:
                    problem = f"{text[0].lower()}{text[1:]}" + ("" if place else f", not {shown(value)}")
        raise self.error(f"{label}: {problem}")

    def _read(self, given: Any, label: str) -> Any:
        if self.kind == "pairs" and isinstance(given, list | tuple):
            return dict(self._pair(each, label) for each in given)
        if self.kind in ("list", "repeated") and isinstance(given, list | tuple):
            return list(given)
        if not isinstance(given, str):
            return given
        match self.kind:
            case "switch":
                if given.lower() in _SWITCH:
                    return _SWITCH[given.lower()]
            case "pairs" if given.startswith("{"):
                return _json(given)
            case "pairs":
                return dict(self._pair(part, label) for part in given.split(","))
            case "list" | "repeated" if given.startswith("["):
                return _json(given)
            case "repeated":
                return [given]
        if self.nullable and self._closed and given not in self.choices and given == ("auto" if self.rule else "none"):
            return None
        if self.kind == "list":
            return [part.strip() for part in given.split(",") if part.strip()]
        for number in self.numbers:
            # Only 0 to 9 are digits here: what Python also takes (1_000, Arabic digits, blanks) is more likely a slip.
            with contextlib.suppress(ValueError):
                if _NUMBER.fullmatch(given):
                    return number(given)
        if given in self.choices or not (self.choices or self.numbers or self.kind == "switch"):
            return given
        near = difflib.get_close_matches(given, self.choices, n=1)
        words = ["true", "false"] if self.kind == "switch" else self.choices
        wanted = " or ".join([*("a whole number" if n is int else "a number" for n in self.numbers), *words])
        raise self.error(f"{label} takes {wanted}, not {shown(given)}", f"did you mean {near[0]}?" if near else "")

    def _pair(self, text: Any, label: str) -> tuple[str, str]:
        name, equals, column = text.partition("=") if isinstance(text, str) else ("", "", "")
        if not (equals and name.strip() and column.strip()):
            raise self.error(
                f"{label} takes FIELD=COLUMN, not {shown(text)}", f"for instance {self.flags[0]} instruction=question"
            )
        return name.strip(), column.strip()

    def error(self, message: str, hint: str = "") -> InvalidSettingError:
        """The error for this setting; without another hint it says what the setting is and takes."""
        limits = f" ({self.range})" if self.range else ""
        return InvalidSettingError(
            message, hint=hint or f"{self.name}: {self.help}{limits}", details={"field": self.name}
        )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # which is then no list or object


def _plain(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # Scalars of numpy, torch and their like are no numbers to a decoder.
    scalar = getattr(value, "item", None)
    return scalar() if callable(scalar) and getattr(value, "shape", None) == () else value


@functools.cache
def settings() -> dict[str, Setting]:
    """Every setting of a run by its name, in the order of ``RunConfig``."""
    return _read(RunConfig)


@functools.cache
def multi_settings() -> dict[str, Setting]:
    """Those of a session of several runs, in the order of ``MultiConfig``."""
    return _read(MultiConfig)


@functools.cache
def all_settings() -> dict[str, Setting]:
    """Those of a run, of a session, and of the program (``AppConfig``)."""
    return {**settings(), **multi_settings(), **_read(AppConfig)}


def _read(kind: type[Struct]) -> dict[str, Setting]:
    info = inspect.type_info(kind)
    assert isinstance(info, inspect.StructType)
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    return {field.name: _setting(field, types[field.name]) for field in info.fields}


def _setting(field: inspect.Field, kind: Any) -> Setting:
    assert isinstance(field.type, inspect.Metadata)
    extra, meaning = field.type.extra or {}, (field.type.extra_json_schema or {})["description"]
    section, bare = extra["section"], _bare(field.type)
    parts = [_bare(part) for part in getattr(bare, "types", (bare,))]
    default = None if field.required else field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    # A list that is empty unless given holds sentences; one that is open (None) holds names.
    listed: Kind = "list" if default is None else "repeated"
    forms: dict[type[inspect.Type], Kind] = {
        inspect.BoolType: "switch",
        inspect.DictType: "pairs",
        inspect.ListType: listed,
    }
    numbers = {inspect.IntType: int, inspect.FloatType: float}
    given = {"key": field.name.removeprefix(f"{section}_"), "flags": ("--" + field.name.replace("_", "-"),), **extra}
    return Setting(
        name=field.name,
        help=meaning,
        kind=next((forms[type(part)] for part in parts if type(part) in forms), "value"),
        type=kind,
        choices=tuple(str(v) for part in parts if isinstance(part, inspect.LiteralType) for v in part.values),
        numbers=tuple(numbers[type(part)] for part in parts if type(part) in numbers),
        range=", ".join(filter(None, map(_limits, parts))),
        default=default,
        nullable=any(isinstance(part, inspect.NoneType) for part in parts),
        **given,
    )


def _bare(kind: inspect.Type) -> inspect.Type:
    return _bare(kind.type) if isinstance(kind, inspect.Metadata) else kind


def _limits(kind: inspect.Type) -> str:
    """What numbers a type takes: ``at least 16``, ``above 0, at most 1``."""
    if not isinstance(kind, inspect.IntType | inspect.FloatType):
        return ""
    words = (("at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt))
    return ", ".join(f"{word} {limit:.10g}" for word, limit in words if limit is not None)


def nearest(text: str, among: Iterable[Setting] | None = None) -> Setting | None:
    """The setting that a wrong name most likely means: other trainers' names, another spelling or place, a typo."""
    known = list(all_settings().values() if among is None else among)
    plain = re.split(r"\.|__", text[:_LONGEST_NAME].lower().removeprefix(PREFIX.lower()).lstrip("-"))[-1]
    plain = plain.replace("-", "_")
    by_name: dict[str, Setting] = {}
    for setting in known:
        for name in (setting.name, setting.key):
            by_name.setdefault(name, setting)
    others = {name: by_name[ours] for name, ours in OTHERS.items() if ours in by_name}
    if found := by_name.get(plain) or others.get(plain):
        return found
    near = difflib.get_close_matches(plain, [*by_name, *others], n=1)
    return {**others, **by_name}[near[0]] if near else None


def find(name: str) -> Setting:
    """The setting that a person names: ``learning_rate`` or ``training.learning_rate``.

    Raises:
        InvalidSettingError: there is none; the nearest is named.
    """
    for setting in all_settings().values():
        if name in (setting.name, setting.path):
            return setting
    raise unknown(f"there is no setting {shown(name)}", name, lambda near: near.path)


def unknown(
    what: str, written: str, shown_as: Callable[[Setting], str], *, place: str = "", run: bool = False
) -> InvalidSettingError:
    """The error for a name that is no setting's: the nearest one is named as it would be written there.

    Args:
        run: only a run's settings can be meant.
    """
    near = nearest(written, settings().values() if run else None)
    return InvalidSettingError(
        f"{place}: {what}" if place else what,
        hint=f"did you mean {shown_as(near)}?" if near else "`backprop config` lists every setting",
        details={"field": written[:_LONGEST_NAME], **({"place": place} if place else {})},
    )


def require_all(errors: list[Any]) -> None:
    """Raise what is wrong: the one error, or all of them as one.

    Raises:
        BackpropError: of the class of the first one.
    """
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = [error.message + (f" ({error.hint})" if error.hint else "") for error in errors]
        raise type(errors[0])(
            f"{len(errors)} things are wrong:\n" + "\n".join(f"  {line}" for line in lines),
            hint="`backprop config` shows every setting with its range",
            details={**errors[0].details, "errors": [error.to_dict() for error in errors]},
        )


def chosen_by_rule(before: RunConfig, after: RunConfig) -> dict[str, str]:
    """Where the values come from that ``before`` left open and ``after`` has, in words."""
    rules = {name: setting.rule for name, setting in settings().items() if setting.rule}
    chosen = [name for name in rules if getattr(before, name) in (None, "auto")]
    return {name: f"rule: {rules[name]}" for name in chosen if getattr(before, name) != getattr(after, name)}
