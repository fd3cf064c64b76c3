"""What a drive may say: that it is full, in each of its forms, which is waited for; that it cannot
be read for a moment."""

import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

from discord_lora.console import Interrupted, UserError, words_of

WRITE_ERRORS = (OSError, RuntimeError, SafetensorError, MemoryError)
"""How Python, torch and safetensors say that something could not be written."""

LOOK_SECONDS = 10.0
"""From one try to the next while the disk is full."""

READ_ATTEMPTS = 3
RENAME_ATTEMPTS = 10

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FULL_ON_WINDOWS = {39, 112, 1295}  # ERROR_HANDLE_DISK_FULL, _DISK_FULL, _DISK_QUOTA_EXCEEDED
_NO_FOLDER_FLUSH = {errno.EINVAL, errno.ENOTSUP, errno.EACCES}
"""What file systems answer that cannot flush a folder (network drives)."""

T = TypeVar("T")

NoRoom = Callable[[str], None]
"""Waits for a while; gets a sentence that says what is full. May raise Interrupted."""


def is_full(error: BaseException | None) -> bool:
    """True if a full disk or quota is behind the error.

    safetensors gives the number of the system's error in its text alone. torch says that a
    position is not the expected one; the error of the file that it wrote to is the context of that.
    """
    while error is not None:
        if isinstance(error, OSError) and (
            error.errno in _FULL or getattr(error, "winerror", None) in _FULL_ON_WINDOWS
        ):
            return True
        if isinstance(error, SafetensorError):
            number = re.search(r"\(os error (\d+)\)", str(error))
            full = _FULL_ON_WINDOWS if sys.platform == "win32" else _FULL
            return number is not None and int(number[1]) in full
        error = error.__cause__ or error.__context__
    return False


def when_there_is_room(
    write: Callable[[], None],
    what: str,
    folder: Path,
    *,
    make_room: Callable[[], bool],
    no_room: NoRoom | None,
) -> None:
    """Call `write` until the disk has room for what it writes, for as long as it takes.

    Args:
        write: leaves nothing behind where it fails.
        what: is written, for the sentence.
        folder: where to.
        make_room: removes what can be spared; False if nothing is left of that.
        no_room: waits. None: a full disk is an error like any other.

    Raises:
        OSError, RuntimeError, SafetensorError: of `write`, if it is not for want of room.
        Interrupted: of `no_room`.
    """
    while True:
        try:
            write()
        except WRITE_ERRORS as error:
            if not is_full(error):
                raise
            if not make_room():
                if no_room is None:
                    raise
                no_room(_what_is_full(what, folder))
        else:
            return


def _what_is_full(what: str, folder: Path) -> str:
    try:
        free = f", {shutil.disk_usage(folder).free / 1e6:,.0f} MB free"
    except OSError:
        free = ""
    return (
        f"The disk is full ({folder}{free}): there is no room for {what}. The run waits and loses "
        "nothing; delete something there, and it goes on by itself."
    )


class WaitForRoom:
    """Waits between two tries: says so once, and ends when a stop is asked for."""

    def __init__(
        self,
        say: Callable[[str], None],
        stop_requested: Callable[[], bool],
        still_here: Callable[[], None] = lambda: None,
        interrupted: Callable[[str], Interrupted] = Interrupted,
    ) -> None:
        """`interrupted` makes a sentence what ends the run."""
        self._say = say
        self._stop_requested = stop_requested
        self._still_here = still_here
        self._interrupted = interrupted
        self._began: float | None = None

    def __call__(self, sentence: str) -> None:
        """Wait `LOOK_SECONDS`.

        Raises:
            Interrupted: the run is to stop, and what it did since the last checkpoint is lost.
        """
        if self._began is None:
            self._began = time.monotonic()
            self._say(sentence)
        until = time.monotonic() + LOOK_SECONDS
        while time.monotonic() < until:
            if self._stop_requested():
                raise self._interrupted(
                    "The disk is full, and what came after the last checkpoint could not be saved. "
                    "Make room first."
                )
            time.sleep(0.1)
        self._still_here()

    def over(self) -> float:
        """Seconds of waiting; if there was any, says that it was written in the end."""
        if self._began is None:
            return 0.0
        seconds = time.monotonic() - self._began
        self._say(f"there is room again: saved after {seconds / 60:,.1f} minutes of waiting")
        return seconds


def patiently(read: Callable[[], T]) -> T:
    """A virus scanner or a network drive may be in the way for a moment.

    Raises:
        OSError: of `read`, also after a while; at once where there is nothing to read.
    """
    for _ in range(READ_ATTEMPTS - 1):
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError):
            raise
        except OSError:
            time.sleep(1)
    return read()


def entries(folder: Path) -> list[Path]:
    """What lies in a folder; nothing if there is none.

    Not by `glob`, which takes a folder that may not be read for an empty one: a run would start
    anew, and delete what it goes on from.

    Raises:
        OSError: the drive does not say.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def look_into(folder: Path) -> list[Path]:
    """`entries`, patiently.

    Raises:
        UserError: the drive does not say, also after a while.
    """
    try:
        return patiently(partial(entries, folder))
    except OSError as error:
        raise UserError(
            f"Cannot look into {folder} ({words_of(error)}); see to the drive and the rights, then "
            "run the same command again."
        ) from None


def put_in_place(aside: Path, final: Path) -> None:
    """Rename; on Windows a virus scanner may hold a fresh file for a moment."""
    for attempt in range(RENAME_ATTEMPTS):
        try:
            aside.replace(final)
            return
        except PermissionError:
            if attempt == RENAME_ATTEMPTS - 1:
                raise
            time.sleep(0.5)


def flush_files(folder: Path) -> None:
    """Push each file to the disk itself, then the folder's list of them."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Push the names in a folder to the disk: a power cut undoes a rename that is not flushed.

    Windows has no such call; NTFS keeps a journal of its names.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FLUSH:
            raise
    finally:
        os.close(descriptor)
