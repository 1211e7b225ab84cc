"""Ctrl-C that loses nothing: the first one asks the loop to finish its step and save, the second leaves at once."""

import os
import signal
import weakref

from run.cli import INTERRUPTED

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")  # Windows: BREAK, also for a closed window
LEFT_ALONE = (signal.SIG_IGN, None)  # ignored, as under nohup; or handled by what is not Python


class StopRequest:
    """`asked` turns true at the first Ctrl-C, SIGTERM, hang-up (a closed window) or, on Windows, Ctrl-Break.

    As long as this object lives, or until it is `over`: a notebook goes on in the same process when a training has
    ended, and the next interrupt is for another cell.
    """

    def __init__(self):
        self.asked = False
        numbers = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]
        before = {number: signal.getsignal(number) for number in numbers}
        before = {number: handler for number, handler in before.items() if handler not in LEFT_ALONE}
        handle = weakref.WeakMethod(self._handle)  # `signal` keeps what it is given, and must not keep this object
        for number in before:
            signal.signal(number, lambda *args: handle() and handle()(*args))
        self._restore = weakref.finalize(self, restore, before)

    def over(self) -> None:
        """From here on a signal does what it did before, in a script: leave at once. All that was trained is saved."""
        self._restore()

    def _handle(self, signum, frame) -> None:
        # A handler and no KeyboardInterrupt: nothing is torn out of a save. What a second signal leaves behind of one
        # is a hidden folder; whatever bears its own name is whole at every moment.
        if self.asked and "TORCHELASTIC_RUN_ID" not in os.environ:
            os._exit(INTERRUPTED)
        # torchrun passes on the signal that the terminal has already sent, and after 30 s kills by itself.
        if not self.asked and "TORCHELASTIC_RUN_ID" not in os.environ:
            os.write(2, b"\nStopping after this step; everything will be saved. Once more to leave at once.\n")
        elif not self.asked and os.environ.get("RANK") == "0":
            os.write(2, b"\nStopping after this step; everything will be saved.\n")
        self.asked = True


def restore(handlers: dict) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)
