"""A run outlives whatever happens to the terminal it was started from: real engine, real terminal, real kills."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal

import pytest
from backprop.core.events import Stop
from backprop.runs import engine_client
from patience import PATIENCE
from place import ENDLESS, Place, program
from processes import kill_engine
from terminal import Terminal

ENDLESS_RUN = ["--steps", str(ENDLESS)]


def shown_step(terminal: Terminal) -> int:
    """The step on the screen, 0 before the first."""
    found = re.search(r"step ([\d,]+)/", terminal.text)
    return int(found[1].replace(",", "")) if found else 0


def attach_and_stop(place: Place, beyond: int) -> None:
    """A new application finds the run, shows where it is now, and its keys work."""
    with place.application("--attach", place.run().run_id[:6]) as again:
        again.wait_until(lambda: shown_step(again) >= beyond, PATIENCE, f"step {beyond}")
        again.send("s")
        again.wait_for("stopped", PATIENCE)
        again.send("q")
        assert again.wait_exit(PATIENCE) == 0
    state = place.state()
    assert state.status == "stopped"
    assert list(state.curves.step) == list(range(1, state.step + 1))
    assert state.damage == []


def test_the_engine_outlives_an_application_that_is_killed(place: Place) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        application.kill(signal.SIGKILL)
        before = place.state().step
    attach_and_stop(place, place.wait_step(before + 50))


def test_the_engine_outlives_a_terminal_that_is_closed(place: Place) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        os.killpg(application.process.pid, signal.SIGHUP)
        application.hang_up()
        assert application.process.wait(PATIENCE) is not None
        before = place.state().step
    attach_and_stop(place, place.wait_step(before + 50))


def test_a_stopped_application_does_not_hold_the_engine_and_catches_up(place: Place) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        application.kill(signal.SIGSTOP)
        # Many times what the pipe between the two holds.
        there = place.wait_step(place.state().step + 600)
        application.kill(signal.SIGCONT)
        application.wait_until(lambda: shown_step(application) >= there, PATIENCE, f"step {there}")
        application.send("s")
        application.wait_for("stopped", PATIENCE)
        application.send("q")
        assert application.wait_exit(PATIENCE) == 0
        assert application.is_clean
        assert application.echoes
    state = place.state()
    assert list(state.curves.step) == list(range(1, state.step + 1))


def test_ctrl_z_gives_the_shell_back_and_fg_returns_to_a_run_that_went_on(place: Place) -> None:
    command = shlex.join([program("backprop-tui"), *place.flags, *ENDLESS_RUN])
    with Terminal(["bash", "--norc", "--noprofile", "-i"], columns=100, rows=30, cwd=place.folder) as shell:
        shell.send(command + "\n")
        shell.wait_until(lambda: shown_step(shell) > 5, PATIENCE, "a few steps")
        shell.send("ctrl+z")
        shell.wait_for("Stopped", PATIENCE)
        assert shell.is_clean
        there = place.wait_step(place.state().step + 300)
        shell.send("fg\n")
        shell.wait_until(lambda: shown_step(shell) >= there, PATIENCE, f"step {there}")
        shell.send("s")
        shell.wait_for("run stopped after", PATIENCE)
        shell.send("q")
        shell.wait_for("look at it again", PATIENCE)
        shell.send("echo still $((40 + 2))\n")
        shell.wait_for("still 42", PATIENCE)
        assert shell.is_clean
    state = place.state()
    assert list(state.curves.step) == list(range(1, state.step + 1))


def test_a_hung_up_command_line_leaves_its_run_going(place: Place) -> None:
    with Terminal([program("backprop"), "train", *place.flags, *ENDLESS_RUN], cwd=place.folder) as terminal:
        terminal.wait_until(lambda: f"/{ENDLESS}" in terminal.text, PATIENCE, "a step")
        os.killpg(terminal.process.pid, signal.SIGHUP)
        terminal.hang_up()
        assert terminal.process.wait(PATIENCE) is not None
    place.wait_step(place.state().step + 50)
    engine_client.attach(place.run().path).send(Stop())
    place.wait_until(lambda: place.state().status == "stopped", "the end")


@pytest.mark.parametrize("how", ["leave", "ctrl+c"])
def test_the_terminal_is_clean_after_leaving_and_the_run_goes_on(place: Place, how: str) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        if how == "leave":
            application.send("q")
            application.wait_for("Leave it running")
            application.send("enter")
        else:
            application.send("ctrl+c")
            application.wait_for("Leave it running")
            application.send("ctrl+c")
        assert application.wait_exit(PATIENCE) == 0
        assert application.is_clean
        assert application.echoes
        assert f"--attach {place.run().run_id}" in application.text
    place.wait_step(place.state().step + 20)


def test_stopping_from_the_leave_question_saves_the_adapter(place: Place) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        application.send("q")
        application.wait_for("Leave it running")
        application.send("s")
        assert application.wait_exit(PATIENCE) == 0
        assert application.is_clean
    place.wait_until(lambda: place.state().status == "stopped", "the end")
    assert (place.run().adapter / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("phases", [("loading", "preparing the data", "training"), ("training",)])
def test_killing_from_the_leave_question_ends_the_engine_also_when_typed_ahead(
    place: Place, phases: tuple[str, ...]
) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        # A short phase may be over between two looks at the screen: the first that is seen will do.
        application.wait_until(lambda: any(phase in application.text for phase in phases), PATIENCE, "a phase")
        engine = place.run()
        application.send("qk")
        assert application.wait_exit(PATIENCE) == 0
        assert application.is_clean
    assert not engine.is_locked()
    assert place.state().status == "crashed"


def test_a_stopped_run_is_continued_from_the_list_of_runs(place: Place) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        application.send("s")
        application.wait_for("run stopped after", PATIENCE)
        there = place.state().step
        application.send("4")
        application.wait_for(f"c goes on exactly after step {there}", PATIENCE)
        application.send("c")
        application.wait_for("starting", PATIENCE)
        application.wait_until(lambda: shown_step(application) > there, PATIENCE, f"a step beyond {there}")
        application.send("s")
        application.wait_until(lambda: place.state().status == "stopped", PATIENCE, "the second end")
        application.wait_for("stopped", PATIENCE)
        application.send("q")
        assert application.wait_exit(PATIENCE) == 0
    state = place.state()
    assert state.resumes == 1
    assert list(state.curves.step) == list(range(1, state.step + 1))


def test_a_killed_engine_is_reported_and_the_terminal_stays_clean(place: Place) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        kill_engine(place.run())
        application.wait_for("RUNTIME_ENGINE_CRASHED", PATIENCE)
        application.wait_for("crashed", PATIENCE)
        application.send("q")
        application.wait_exit(PATIENCE)
        assert application.is_clean
        assert application.echoes
    assert place.state().status == "crashed"


def test_pause_holds_the_run_and_resume_lets_it_go(place: Place) -> None:
    with place.application(*place.flags, *ENDLESS_RUN) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        application.send("p")
        application.wait_for("paused", PATIENCE)
        held = place.state()
        assert held.status == "paused"
        application.send("p")
        application.wait_until(lambda: place.state().status == "running", PATIENCE, "going on")
        place.wait_step(held.step + 20)


def test_a_storm_of_resizes_leaves_a_screen_that_works(place: Place) -> None:
    chooser = random.Random(4)
    with place.application(*place.flags, *ENDLESS_RUN, columns=80, rows=24) as application:
        application.wait_until(lambda: shown_step(application) > 5, PATIENCE, "a few steps")
        for _ in range(60):
            application.resize(chooser.randint(20, 200), chooser.randint(5, 60))
            application.read(0.01)
        application.resize(80, 24)
        seen = place.state().step
        application.wait_until(lambda: shown_step(application) > seen, PATIENCE, "the step")
        application.send("q")
        application.wait_for("Leave it running")


def test_a_terminal_that_is_too_small_says_what_it_needs(place: Place) -> None:
    with place.application(columns=50, rows=12) as application:
        application.wait_for("60", PATIENCE)
        application.resize(80, 24)
        application.wait_gone("too small", PATIENCE)
