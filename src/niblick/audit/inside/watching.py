"""Notes what a script tries beyond computing: network, other programs, processes of its own.

Uses Python's audit events, which a script cannot unhook from Python code. Only attempts made from
the submission's own files count; libraries do some of this for reasons of their own.
"""

from __future__ import annotations

import sys
from typing import Any

_WATCHED = {
    "socket.connect": "connects to the network",
    "socket.getaddrinfo": "looks up a host name",
    "urllib.Request": "asks for a URL",
    "subprocess.Popen": "starts another program",
    "os.system": "starts another program",
    "os.exec": "replaces itself by another program",
    "os.posix_spawn": "starts another program",
    "os.fork": "forks a process",
    "os.kill": "signals a process",
}
_MOST = 20


class Attempts:
    """Watches from its creation to `close`; `seen` holds at most 20 sentences, each once."""

    def __init__(self, folder: str) -> None:
        self.seen: list[str] = []
        self._folder, self._open = folder, True
        sys.addaudithook(self._hear)

    def close(self) -> None:
        """Stops noting; the hook itself stays, as audit hooks do."""
        self._open = False

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._open or event not in _WATCHED or len(self.seen) >= _MOST:
            return
        place = self._own_place()
        if place is None:
            return
        note = f"{place}: {_WATCHED[event]} ({_short(arguments)})"
        if note not in self.seen:
            self.seen.append(note)

    def _own_place(self) -> str | None:
        frame = sys._getframe(2)
        for _ in range(40):
            if frame is None:
                return None
            name = frame.f_code.co_filename
            if name == "<string>" or (
                name.startswith(self._folder + "/") and "site-packages" not in name
            ):
                return f"{name.removeprefix(self._folder + '/')}:{frame.f_lineno}"
            if frame.f_back is None:
                return None
            frame = frame.f_back
        return None


def _short(arguments: tuple[Any, ...]) -> str:
    shown = [value for value in arguments if isinstance(value, str | int | tuple | list | bytes)]
    return ", ".join(str(value)[:80] for value in shown[:2])
