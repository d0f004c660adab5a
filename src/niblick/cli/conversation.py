"""`niblick generate MODEL --interactive`: each line that is typed is continued.

An empty line goes on with the text so far; `/again` draws another continuation of the same line;
`/temperature 0.5` and the like change what is drawn from. Ctrl-C stops a text, Ctrl-D ends.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from niblick.cli.generation import Start, write
from niblick.engine import Sampling
from niblick.errors import NiblickError
from niblick.limits import did_you_mean, quoted

_HELP = """\
A line is continued; an empty line goes on with the text so far.
  /again            another continuation of the same text, with the next seed
  /temperature X    0 takes the likeliest token each time
  /top-k N          draw among the N likeliest; 0: all
  /top-p X          draw among the likeliest that hold this probability
  /seed N           of the texts that follow
  /max-tokens N     most tokens of one continuation
  /help  /quit      Ctrl-C stops a text, Ctrl-D ends"""
_NUMBERS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "top-k": int,
    "top-p": float,
    "seed": int,
    "max-tokens": int,
}
_WORDS = (*_NUMBERS, "again", "help", "quit")


@dataclass
class _Talk:
    """What is drawn from and what has been written."""

    start: Start
    sampling: Sampling
    max_tokens: int
    before: str = ""  # the text that the last continuation began after
    after: str = ""  # that text and its continuation

    def go_on(self, text: str) -> None:
        """Write what follows `text`, until it ends or Ctrl-C."""
        found = self.start(text, self.sampling, self.max_tokens)
        with suppress(KeyboardInterrupt):
            for piece in found:
                write(piece)
        write("\n")
        self.before, self.after = text, text + found.text

    def again(self) -> None:
        """Write another continuation of the same text."""
        self.sampling = replace(self.sampling, seed=self.sampling.seed + 1)
        self.go_on(self.before)

    def change(self, name: str, value: str) -> None:
        """Set or, without a value, tell one number."""
        key = name.replace("-", "_")
        if value:
            try:
                number = _NUMBERS[name](value)
            except ValueError:
                raise NiblickError(f"/{name} takes a number, not {quoted(value)}") from None
            if name == "max-tokens":
                self.max_tokens = max(int(number), 0)
            else:
                self.sampling = _changed(self.sampling, key, number)
        _say(f"{name} {self.max_tokens if name == 'max-tokens' else getattr(self.sampling, key)}")


def _changed(sampling: Sampling, key: str, number: Any) -> Sampling:
    return replace(sampling, **{key: number})


def converse(start: Start, sampling: Sampling, max_tokens: int) -> None:
    """Continue line after line of standard input until it ends."""
    talk = _Talk(start, sampling, max_tokens)
    if sys.stdin.isatty():
        _say("type a line to continue it; /help tells the rest, Ctrl-D ends")
    with _interruptible():
        for line in _typed():
            try:
                if not _answer(talk, line):
                    return
            except NiblickError as error:
                _say(f"niblick: {error}")


def _answer(talk: _Talk, line: str) -> bool:
    """Do what one line asks; False ends."""
    if not line.startswith("/"):
        talk.go_on(line or talk.after)
        return True
    name, _, value = line[1:].strip().partition(" ")
    if name == "quit":
        return False
    if name in _NUMBERS:
        talk.change(name, value.strip())
    elif name == "again":
        talk.again()
    elif name == "help":
        _say(_HELP)
    else:
        raise NiblickError(f"no command /{name} (/help lists them){did_you_mean(name, _WORDS)}")
    return True


def _typed() -> Iterator[str]:
    """Lines without their ends; on a terminal with editing and a history."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        for data in sys.stdin.buffer:
            yield data.decode("utf-8", "surrogateescape").rstrip("\r\n")  # refused, line by line
        return
    with suppress(ImportError):
        import readline  # noqa: F401 - `input` edits lines with it
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            _say("\n(Ctrl-D ends)")
        except EOFError:
            write("\n")
            return


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C is a KeyboardInterrupt in the block, not the end of the command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
