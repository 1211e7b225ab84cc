"""Ctrl-C that loses nothing: the first one asks the loop to finish its step and save, the second leaves at once."""

import os
import signal
from collections.abc import Callable

from run.cli import INTERRUPTED


class StopRequest:
    """`asked` turns true at the first Ctrl-C, SIGTERM, hang-up (a closed window) or, on Windows, Ctrl-Break."""

    def __init__(self):
        self.asked = False
        self._listen(self._handle)

    def over(self) -> None:
        """From here on a signal leaves at once: all that was trained is saved."""
        self._listen(signal.default_int_handler)

    def _listen(self, handler: Callable) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"):  # Windows: BREAK, also for a closed window
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) != signal.SIG_IGN:  # as under nohup
                signal.signal(getattr(signal, name), handler)

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
