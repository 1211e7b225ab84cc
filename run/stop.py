"""Ctrl-C that loses nothing: the first one asks the loop to finish its step and save, the second leaves at once."""

import os
import signal
import sys

from run.cli import INTERRUPTED


class StopRequest:
    """`asked` turns true at the first Ctrl-C, SIGTERM or (Windows) Ctrl-Break."""

    def __init__(self):
        self.asked = False
        for name in ("SIGINT", "SIGTERM", "SIGBREAK"):
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), self._handle)

    def _handle(self, signum, frame) -> None:
        if self.asked:
            os._exit(INTERRUPTED)  # what is on the disk is whole at every moment
        self.asked = True
        print("\nStopping after this step; everything will be saved. Once more to leave at once.", file=sys.stderr)
