"""How the application is left: what becomes of the runs that go on is asked, and done before it goes."""

from __future__ import annotations

from backprop.core.errors import BackpropError
from backprop.core.events import Stop

from backprop_tui.hints import hint_here
from backprop_tui.keys import press
from backprop_tui.screens.dialogs import LEAVING, LOSING, Question
from backprop_tui.text import count
from backprop_tui.type_ahead import KeysInOrder
from backprop_tui.watch import Watch


class Leaving(KeysInOrder):
    """An application that may be left while runs are trained."""

    def __init__(self, *, ansi_color: bool | None = None) -> None:
        super().__init__(ansi_color=ansi_color)
        self.leaving = ""
        """How the runs are to end, ``stop`` or ``kill``, before the application leaves."""
        self.asked_about: list[Watch] = []
        """Runs that were living when a person left."""
        self._told: list[Watch] = []
        """Runs that were asked to stop."""
        self._asking = False
        """The person wants to leave and is asked what becomes of the run: its end is the answer."""

    def living(self) -> list[Watch]:
        """The runs that are being trained and were opened here."""
        raise NotImplementedError

    def losing(self) -> list[str]:
        """What else ends with the application, a line each."""
        raise NotImplementedError

    def flush(self) -> None:
        """Bring everything up to date, with ``go_on_leaving`` among it."""
        raise NotImplementedError

    def go_on_leaving(self, living: list[Watch]) -> None:
        """Have ``living`` end as was asked; leave once there is none."""
        for watch in living if self.leaving else ():
            self._end(watch)
        if (self.leaving or self._asking) and not living:
            self.exit()

    def action_leave(self) -> None:
        """Leave; with living runs, ask what becomes of them, and say what ends with the application."""
        living = self.living()
        lines = [*map(_how_far, living), *self.losing()]
        if not lines or self.leaving:
            self.exit()
        elif not isinstance(self.screen, Question):
            self._asking = len(lines) == len(living)
            answers = LEAVING if living else LOSING
            if living and all(watch.state.status == "paused" for watch in living):
                answers = (LEAVING[0]._replace(meaning="it stays paused; come back to it any time"), *LEAVING[1:])
            self.push_screen(Question("leave", "\n".join(lines), answers), self._left)

    def _left(self, value: str | None) -> None:
        self._asking = False
        self.asked_about = self.living()
        if value == "leave":
            self.exit()
        elif value:
            self.leaving = value
            words = "ending the run: leaving when it is gone"
            if value == "stop":
                words = "the run stops after this step; leaving when it is saved"
            self.notify(f"{words} ({press('everywhere.leave')} leaves now)", timeout=30)
            self.flush()

    def _end(self, watch: Watch) -> None:
        """Have a run end. An engine that was only just started is not found and does not listen: each flush tries."""
        try:
            if self.leaving == "kill":
                watch.kill()
            elif watch not in self._told:
                watch.send(Stop())
                self._told.append(watch)
        except BackpropError as error:
            if not error.retryable:
                self.leaving = ""
                self.notify(f"{error.message}. {hint_here(error.hint)}", severity="warning", timeout=6)

    def action_interrupt(self) -> None:
        """Ctrl+C never stops training: it asks; the second one leaves the run going."""
        if isinstance(self.screen, Question):
            self.exit()
        else:
            self.action_leave()

    async def action_quit(self) -> None:
        self.action_leave()

    def action_help_quit(self) -> None:
        self.action_interrupt()


def _how_far(watch: Watch) -> str:
    state = watch.state
    if not state.step:
        return f"Run {state.run_id} is being prepared."
    return f"Run {state.run_id} is at step {count(state.step)} of {count(state.total_steps)}."
