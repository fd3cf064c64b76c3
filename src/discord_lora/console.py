"""How scripts speak to people: output on any console, exit codes, errors without tracebacks."""

import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

EXIT_DONE = 0
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Something only the user can put right: shown without a traceback, exit code 2.

    `problems` is one sentence each, and each ends by saying what to do next.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def words_of(error: BaseException) -> str:
    """What it says, or else its kind: a MemoryError says nothing."""
    return str(error) or type(error).__name__


class Interrupted(Exception):  # noqa: N818 - it is not an error: that is what was asked for
    """The user stopped the work. The text says what is saved and how to go on."""


class _Console(Console):
    """rich would leave with exit code 1, in the middle of whatever is being done."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        raise BrokenPipeError


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console that never fails on a character: a cp1252 window shows `?` instead."""
    stream = sys.stderr if stderr else sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    return _Console(stderr=stderr, quiet=quiet, highlight=False, soft_wrap=not stream.isatty())


def printable(text: str) -> str:
    """Foreign text without what a terminal obeys: control characters, changes of direction."""
    return _OBEYED.sub(" ", text)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `98.5 h`, `12 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 10 * 86_400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:,.0f} days"


def plainly(console: Console) -> Callable[[str], None]:
    """Print lines as they are: a name in brackets is no markup."""
    return lambda line: console.print(line, markup=False)


class _PatientProgress(Progress):
    """A terminal that is gone (closed, hung up) is no reason to lose the work."""

    def refresh(self) -> None:
        with suppress(OSError):
            super().refresh()


def make_progress(console: Console) -> Progress:
    """A progress bar with counts and the time left; silent where nobody is watching."""
    return _PatientProgress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def byte_progress(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A bar over the bytes read; call what it gives with bytes done and bytes in all."""
    columns = (TextColumn("reading"), BarColumn(bar_width=30), DownloadColumn(), TextColumn("left"))
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("reading", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def run_script(main: Callable[[], int | None]) -> NoReturn:
    """Run an entry script: a user's mistake never shows a traceback, a bug always does."""
    console = make_console(stderr=True)
    make_console()
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    try:
        sys.exit(main() or EXIT_DONE)
    except UserError as error:
        for problem in error.problems:
            console.print(f"error: {problem}", style="red", markup=False)
        sys.exit(EXIT_USER_ERROR)
    except MemoryError:
        console.print(
            "error: Memory ran out. Close other programs and run the same command again; a run "
            "goes on from its last checkpoint.",
            style="red",
            markup=False,
        )
        sys.exit(EXIT_USER_ERROR)
    except Interrupted as stop:
        with suppress(OSError):  # what stopped it may be the end of its terminal
            console.print(str(stop), markup=False)
        sys.exit(EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        # A second Ctrl+C must not print a traceback over the goodbye.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        console.print("Stopped.", markup=False)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # `script | head` closed the pipe: nobody is left to tell, and the work is not done.
        sys.stderr.close()
        sys.exit(EXIT_INTERRUPTED)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _drop_what_cannot_be_written(stream)


def _drop_what_cannot_be_written(stream: TextIO) -> None:
    """Python would try once more when it leaves, and leave with 120 instead of our exit code."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            stream.close()
