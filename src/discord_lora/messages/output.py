"""Files that are either whole or not there: written aside, then moved into place."""

import hashlib
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from discord_lora.console import UserError


class AtomicFile:
    """A binary file that appears under its name only when the `with` block ends well.

    Raises UserError on entry when the place cannot be written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._aside = path.with_name(f"{path.name}.part")
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
            reason = (error.strerror or "it is not possible").lower()
            raise UserError(
                f"{self.path} cannot be written: {reason}. Choose another place with --out FILE."
            ) from None
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


def file_hash(path: Path) -> str | None:
    """What the file holds, as 16 hexadecimal digits; None if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError:
        return None
