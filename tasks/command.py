"""What every command of a person shares: a fault, or Ctrl-C, ends it with one line."""

import argparse
import atexit
import errno
import gc
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from ferd.errors import FerdError

BAD_INPUT = 2
INTERRUPTED = 130  # a shell's code for Ctrl-C
UNREAD = 128 + signal.SIGPIPE  # and for a program that wrote to one that had ended
GOES_ON = "stopped; run it again to go on from here"
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)

# A process that ends would otherwise search all that torch and MLflow made for garbage: a second or more.
atexit.register(gc.freeze)


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """For a command; the first line of ``doc``, its module's docstring, says what it does."""
    return argparse.ArgumentParser(description=doc.splitlines()[0] if doc else None)


@contextmanager
def as_command(name: str, when_stopped: str = "stopped") -> Iterator[None]:
    """Run a command's body; what a person can mend is one line on stderr, without a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that is not of UTF-8 has no ± or ∞
    try:
        yield
        if sys.stdout:  # None where it was closed
            sys.stdout.flush()
    except FerdError as error:
        _end(f"{name}: {error}", BAD_INPUT)
    except BrokenPipeError as error:
        end_unread(error)
    except OSError as error:
        _end(f"{name}: {not_writable(error)}", BAD_INPUT)
    except KeyboardInterrupt:
        _end(f"{name}: {when_stopped}", INTERRUPTED)
    finally:
        _write_no_more_unread()


def end_unread(error: BrokenPipeError) -> NoReturn:
    """End without a word where nobody reads standard output any more (``| head``); else raise the error."""
    if not _is_unread():
        raise error
    _write_no_more_unread()
    sys.exit(UNREAD)


def _write_no_more_unread() -> None:
    """What is still to be written to a reader that has ended, as Python ends, goes nowhere."""
    if _is_unread():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _is_unread() -> bool:
    """Whether standard output is a pipe whose reader has ended."""
    output = select.poll()
    try:
        output.register(sys.stdout.fileno(), select.POLLOUT)
    except (AttributeError, ValueError):  # there is none, or it is no file
        return False
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def end_by(handler: Callable[[int, Any], None]) -> None:
    """Have a command ended by SIGTERM, and by SIGHUP, which it gets when its terminal is closed.

    One that is ignored stays so: that is all that ``nohup`` does.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _end(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    sys.exit(code)


def not_writable(error: OSError) -> str:
    """A line for what cannot be written, or not there; any other error is raised again."""
    path = error.filename or "a file"
    if error.errno in IN_THE_WAY:
        return f"{path}: {error.strerror}; move away what is in its place"
    if error.errno == errno.ENAMETOOLONG:
        return f"{Path(path).name:.40}...: {error.strerror}; give a shorter one"
    if error.errno not in NOT_WRITABLE:
        raise error
    return f"{path}: {error.strerror}; free space or correct the permissions"


def without_password(address: str) -> str:
    """The address without the user and password that may stand in it."""
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else address
