"""A checkpoint's manifest: the hash of each of its files, and of these hashes.

It is written last and says of all others, and of itself, whether they are as they were saved.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

MANIFEST = "manifest.json"


class _HashedFile:
    """Hashes what it is given to write, whatever the disk makes of it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        return self.stream.write(data)

    def flush(self) -> None:
        self.stream.flush()


def write_file(path: Path, fill: Callable[[Any], object]) -> str:
    """Write one file and flush it to the disk itself; returns the hash of what was to be in it."""
    with path.open("wb") as stream:
        hashed = _HashedFile(stream)
        fill(hashed)
        hashed.flush()
        os.fsync(stream.fileno())
    return hashed.digest.hexdigest()


def damage(path: Path) -> str:
    """Which files of a checkpoint are not as they were saved, in words; empty if all are.

    What the system's own programs leave beside them (`.DS_Store`, `desktop.ini`) is no damage.

    Raises:
        OSError: what is there cannot be read.
    """
    manifest = path / MANIFEST
    if not _is_file(manifest):
        return f"{MANIFEST} is missing"
    text = manifest.read_bytes()
    try:
        hashes: dict[str, str] = dict(json.loads(text)["files"])
        if text != manifest_of(hashes):
            return f"{MANIFEST} is damaged"
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{MANIFEST} is damaged"
    problems = (_damage_of(path / name, wanted) for name, wanted in sorted(hashes.items()))
    return ", ".join(filter(None, problems))


def _damage_of(file: Path, wanted: str) -> str:
    if not _is_file(file):
        return f"{file.name} is missing"
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    return "" if found == wanted else f"{file.name} is damaged"


def _is_file(path: Path) -> bool:
    """Nor a pipe, from which one would read for ever. Raises OSError: the drive does not say, which
    `Path.is_file` takes for a no."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def manifest_of(hashes: dict[str, str]) -> bytes:
    """The one text for these hashes, with a hash of them: a change in it is not put on a file."""
    own = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode("ascii")).hexdigest()
    return json.dumps({"files": hashes, "sha256": own}, indent=2).encode("ascii")
