"""Finds the files to read: paths, folders and ZIPs, any mix, never extracted to disk."""

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import orjson

from discord_lora.console import UserError
from discord_lora.messages.record import Reject

_BUFFER_BYTES = 1 << 18
_ZIP_MAGIC = b"PK\x03\x04"
_DEEPEST_ZIP = 2
_SKIPPED_FOLDERS = frozenset({"__MACOSX", ".git", "$RECYCLE.BIN"})
_READ_ERRORS = (
    OSError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    NotImplementedError,
)


@dataclass
class InputFile:
    """One file on disk or in a ZIP. `parts` is its whole path, through the ZIP if there is one."""

    name: str
    parts: tuple[str, ...]
    size: int
    opener: Callable[[], BinaryIO]
    on_bytes: Callable[[int], None] = lambda _: None
    problem: str = ""

    @property
    def stem(self) -> str:
        """The file name without its ending."""
        return _printable(PurePosixPath(self.parts[-1]).stem)

    def open(self) -> io.BufferedReader:
        """The bytes from the start. Raises OSError when it cannot be opened.

        A read error further on (a damaged ZIP member, a bad sector) ends the stream early and is
        kept in `problem`: what came before it is not lost.
        """
        try:
            raw = self.opener()
        except _READ_ERRORS as error:
            raise OSError(_reason(error)) from error
        return io.BufferedReader(_SalvagingStream(raw, self), _BUFFER_BYTES)


class _SalvagingStream(io.RawIOBase):
    def __init__(self, raw: BinaryIO, file: InputFile) -> None:
        self._raw = raw
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        try:
            data = self._raw.read(len(view))
        except _READ_ERRORS as error:
            self._file.problem = _reason(error)
            return 0
        view[: len(data)] = data
        self._file.on_bytes(len(data))
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


@dataclass
class Inputs:
    """Everything found. Close it to close the ZIPs that it reads from."""

    files: list[InputFile] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    closers: ExitStack = field(default_factory=ExitStack)

    @property
    def bytes(self) -> int:
        """The size of all files together, unpacked."""
        return sum(file.size for file in self.files)


def find_inputs(paths: Iterable[Path], never: Iterable[Path] = ()) -> Inputs:
    """All files under `paths`, in a stable order, each once.

    Files in `never` (our own output) are left out of folders. Raises UserError that names every
    path which does not exist, or which the output would overwrite.
    """
    wanted = list(paths)
    missing = [path for path in wanted if not path.exists()]
    if missing:
        raise UserError(*(_missing(path) for path in missing))
    inputs = Inputs()
    own = {path.resolve() for path in never}
    overwritten = [
        p for p in wanted if p.is_file() and p.resolve() in own and not _is_training_data(p)
    ]
    if overwritten:
        raise UserError(
            *(
                f"{path} would be read and overwritten; name another output with --out FILE."
                for path in overwritten
            )
        )
    seen: set[Path] = set()
    for path in wanted:
        found = [path] if path.is_file() else [p for p in _walk(path) if p.resolve() not in own]
        for file in found:
            if (resolved := file.resolve()) not in seen:
                seen.add(resolved)
                _add_file(inputs, file)
    return inputs


def _is_training_data(path: Path) -> bool:
    """Our own output may be cleaned once more in its place: it loses nothing by it."""
    with path.open("rb") as stream:
        first_line = stream.readline(1 << 20)
    try:
        record = orjson.loads(first_line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(record, dict) and {"author_id", "channel_id", "train"} <= record.keys()


def _missing(path: Path) -> str:
    return (
        f"There is no {path}. Name the file, folder or ZIP that DiscordChatExporter wrote, "
        "or Discord's data package."
    )


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        # `<export>_Files` is DiscordChatExporter's media folder: what people attached.
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        yield from (Path(root, name) for name in sorted(files) if not name.startswith("."))


def _is_skipped(folder: str) -> bool:
    return folder in _SKIPPED_FOLDERS or folder.endswith("_Files")


def _add_file(inputs: Inputs, path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            is_zip = stream.read(4) == _ZIP_MAGIC
    except OSError as error:
        inputs.rejects.append(Reject(str(path), "whole file", _reason(error)))
        return
    parts = path.absolute().parts
    if is_zip:
        _add_zip(inputs, lambda: path.open("rb"), str(path), parts, depth=1)
    else:
        inputs.files.append(InputFile(_printable(str(path)), parts, size, lambda: _open_raw(path)))


def _add_zip(
    inputs: Inputs,
    opener: Callable[[], BinaryIO],
    name: str,
    parts: tuple[str, ...],
    depth: int,
) -> None:
    try:
        stream = inputs.closers.enter_context(opener())
        archive = inputs.closers.enter_context(zipfile.ZipFile(stream))
        members = sorted(archive.infolist(), key=lambda member: member.filename)
    except _READ_ERRORS as error:
        reason = f"not a readable ZIP ({_reason(error)}): download or make it again"
        inputs.rejects.append(Reject(name, "whole file", reason))
        return
    for member in members:
        inside = PurePosixPath(member.filename.replace("\\", "/")).parts
        if member.is_dir() or not inside or _is_clutter(inside):
            continue
        _add_member(inputs, archive, member, (f"{name}: {'/'.join(inside)}", parts, inside), depth)


def _is_clutter(parts: tuple[str, ...]) -> bool:
    return parts[-1].startswith(".") or any(_is_skipped(folder) for folder in parts[:-1])


def _add_member(
    inputs: Inputs,
    archive: zipfile.ZipFile,
    member: zipfile.ZipInfo,
    where: tuple[str, tuple[str, ...], tuple[str, ...]],
    depth: int,
) -> None:
    name, parts, inside = where

    def opener() -> BinaryIO:
        return archive.open(member)  # type: ignore[return-value]

    if inside[-1].lower().endswith(".zip") and depth < _DEEPEST_ZIP:
        _add_zip(inputs, opener, name, (*parts, *inside), depth + 1)
    else:
        size = member.file_size
        inputs.files.append(InputFile(_printable(name), (*parts, *inside), size, opener))


def _open_raw(path: Path) -> BinaryIO:
    return path.open("rb", buffering=0)


def _printable(name: str) -> str:
    """A file name of any bytes, as text that every file and console takes."""
    return name.encode("utf-8", "replace").decode("utf-8")


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = str(error)
    return "it is protected with a password" if "password" in text else text or "cannot be read"
