"""Work that cannot tell how far it is says what it does once it has taken a while."""

from __future__ import annotations

import io
import sys
from threading import Event

import pytest

from niblick.cli import progress


class Heard(io.StringIO):
    """A stream that is no terminal and tells when a line has come."""

    def __init__(self) -> None:
        super().__init__()
        self.came = Event()

    def write(self, text: str) -> int:
        """As `StringIO.write`."""
        written = super().write(text)
        if text.endswith("\n"):
            self.came.set()
        return written


def test_what_takes_a_while_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setattr(sys, "stderr", heard)
    monkeypatch.setattr(progress, "_SOON", 0.0)
    with progress.working("reading [it]"):
        assert heard.came.wait(30)
    assert heard.getvalue() == "reading [it] ...\n"


@pytest.mark.parametrize("enabled", [True, False])
def test_what_is_soon_over_or_not_to_be_told_says_nothing(
    enabled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    monkeypatch.setattr(sys, "stderr", heard)
    monkeypatch.setattr(progress, "_SOON", 3600.0 if enabled else 0.0)
    with progress.working("reading", enabled=enabled):
        pass
    assert heard.getvalue() == ""


def test_a_reader_of_progress_who_leaves_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def isatty(self) -> bool:
            return False

        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    show = progress._lines()
    for share in (0.1, 0.5, 1.0):
        show("training", share, None, "", True)
