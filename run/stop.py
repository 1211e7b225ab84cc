"""Ctrl-C that loses nothing: the first one asks the loop to finish its step and save, the second leaves at once."""

import os
import signal

from run.cli import INTERRUPTED


class StopRequest:
    """`asked` turns true at the first Ctrl-C, SIGTERM or (Windows) Ctrl-Break."""

    def __init__(self):
        self.asked = False
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle)

    def over(self) -> None:
        """From here on a signal leaves at once: all that was trained is saved."""
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.default_int_handler)

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
