"""What to do, as errors say it for a shell, in the application's own words."""

from __future__ import annotations

import pytest
from backprop.core.errors import InputError

from backprop_tui import hints
from backprop_tui.app import BackpropApp
from backprop_tui.keys import take_own
from backprop_tui.screens.trouble import ErrorPanel, show_error

IN_A_SHELL = {
    "train on the others with --skip-bad, or repair them: `backprop validate` lists them all": (
        "train on the others with skip_bad on, or repair them: c on Data (1) lists them all"
    ),
    "watch it: backprop-tui --attach 3ab4": "watch it: enter on Runs (4)",
    "`backprop resume 3ab4` goes on from its checkpoint": "c on Runs (4) goes on from its checkpoint",
    "`backprop extend 3ab4 --steps N` gives it a new end": "n on Runs (4) gives it a new end",
    "`backprop queue list` shows the entries": "u on Runs (4) shows the entries",
    "try shorter rows (--max-seq-length), or --mode qlora": "try shorter rows (max_seq_length), or mode qlora",
    "`stop` instead of `abort` keeps the adapter": "s instead of a keeps the adapter",
    "--no-unsloth leaves this line out": "use_unsloth off leaves this line out",
    "`pip install --force-reinstall torch`": "`pip install --force-reinstall torch`",
    "`backprop data split --seed 3` is for a shell": "`backprop data split --seed 3` is for a shell",
}


@pytest.mark.parametrize("said", IN_A_SHELL)
def test_commands_and_flags_become_keys_and_settings(said: str) -> None:
    assert hints.hint_here(said) == IN_A_SHELL[said]


def test_where_no_setting_is_meant_a_flag_stays() -> None:
    assert hints.keys_here("say with --model where they are") == "say with --model where they are"


def test_own_keys_are_the_ones_that_are_named() -> None:
    take_own({"data.check": "ctrl+k"})
    try:
        assert hints.hint_here("`backprop validate` lists them") == "ctrl+k on Data (1) lists them"
    finally:
        take_own({})


async def test_an_error_says_what_is_to_be_pressed_here() -> None:
    async with BackpropApp().run_test() as pilot:
        show_error(pilot.app.screen, InputError("rows are bad", hint="leave them out with --skip-bad"))
        await pilot.pause()
        panel = pilot.app.screen
        assert isinstance(panel, ErrorPanel)
        assert "leave them out with skip_bad on" in panel.told.text
