"""Files that are either whole or not there: written aside, then moved into place."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from discord_lora.console import UserError


class AtomicFile:
    """A binary file that appears under its name only when the `with` block ends well.

    Raises UserError on entry when the place cannot be written to; `option` is what to choose
    another place with.
    """

    def __init__(self, path: Path, option: str = "--out") -> None:
        self.path = path
        self.option = option
        self._aside = path.parent / f"{path.name}.part"
        self._stream: BinaryIO | None = None

    def __enter__(self) -> Self:
        try:
            if self.path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            if self.path.exists() and not self.path.is_file():
                raise OSError(0, "it is a device, not a file")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._stream = self._aside.open("wb")
        except OSError as error:
            raise cannot_be_written(self.path, error, self.option) from None
        return self

    @property
    def stream(self) -> BinaryIO:
        """The open file. Only inside the `with` block."""
        if self._stream is None:
            raise ValueError("the file is not open")
        return self._stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.stream.close()
            if error is None:
                self._aside.replace(self.path)
        finally:
            with suppress(OSError):
                self._aside.unlink()


def cannot_be_written(path: Path, error: OSError, option: str) -> UserError:
    """What to say when the disk is full or the place is not for us."""
    reason = (error.strerror or "it is not possible").lower()
    return UserError(
        f"{path} cannot be written: {reason}. Choose another place with {option} FILE."
    )


def write_whole(path: Path, content: bytes, option: str) -> None:
    """Write what `option` of a script asked for. Raises UserError when it cannot be written."""
    try:
        with AtomicFile(path, option) as file:
            file.stream.write(content)
    except OSError as error:
        raise cannot_be_written(path, error, option) from None


def refuse_overwriting(targets: Mapping[str, Path | None], used: Iterable[Path | None]) -> None:
    """Raise UserError if an option names a file that is used otherwise, by itself or in a folder.

    Args:
        targets: option -> where it writes; each must be a file of its own.
        used: what is read, and what is written besides.
    """
    taken = [path for path in used if path is not None]
    for option, target in targets.items():
        if target is None:
            continue
        if any(_is_or_holds(path, target) for path in taken):
            raise UserError(f"{option}: {target} is used for something else; choose another file.")
        taken.append(target)


def _is_or_holds(path: Path, target: Path) -> bool:
    place = path.resolve()
    if place == target.resolve():
        return True
    return target.exists() and (place in target.resolve().parents or _same(path, target))


def _same(path: Path, target: Path) -> bool:
    return path.exists() and path.samefile(target)


def file_hash(path: Path) -> str | None:
    """What the file holds, as 16 hexadecimal digits; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return None
