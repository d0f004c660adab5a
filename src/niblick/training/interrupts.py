"""SIGINT, SIGTERM and a terminal that closes as a flag that the loop reads between steps: a run
stops with a checkpoint.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]


class StopFlag:
    """`signal` is the first that came, 0 before it; the next is handled as outside the block."""

    def __init__(self) -> None:
        self.signal: int = 0
        self.before: dict[int, signal._HANDLER] = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self.signal:
            self.signal = number
            return
        handler = self.before.get(number)
        if not callable(handler):
            raise KeyboardInterrupt
        handler(number, frame)


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Catch the signals inside the block, in the main thread; elsewhere the flag stays 0. That a
    terminal closes is ignored where it was before, as under nohup.
    """
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    for each in _SIGNALS:
        if each.name == "SIGHUP" and signal.getsignal(each) is signal.SIG_IGN:
            continue
        flag.before[each] = signal.signal(each, flag._receive)
    try:
        yield flag
    finally:
        for number, handler in flag.before.items():
            signal.signal(number, handler)
