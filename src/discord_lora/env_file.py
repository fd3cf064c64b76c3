"""The `.env` file itself: read whatever editor wrote it, and written without losing a comment.

What its keys mean is the matter of settings.py.
"""

import io
import itertools
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from dotenv.parser import parse_stream

from discord_lora.console import UserError

MOST_BYTES = 1 << 20

_QUOTED = r"""(?:'[^'\r\n]*'|"[^"\r\n]*"|'(?:\\[\s\S]|[^'\\])*'|"(?:\\[\s\S]|[^"\\])*")"""
_VALUE = rf"(?:[ \t]*{_QUOTED}|[^\r\n]*?)"
"""What stands behind `=`: in quotes it may hold a `#`, and go on over several lines."""

_NEEDS_QUOTES = re.compile(r"^['\"\s]|\s$|\s#|[\r\n]")
_ESCAPED = re.compile(r"'|\\(?=[\\']|\Z)")
"""What dotenv would take for the end of a text in single quotes, or for an escape."""

EnvLine = tuple[str, str | None, str]
"""Key, value (None: the line has no `=`), and where it stands, for messages."""


def read_env_lines(
    path: Path, holds_path: Callable[[str], bool]
) -> tuple[list[EnvLine], list[str]]:
    """The lines that set something (with BOM, UTF-16, CRLF, quotes), and those that are broken.

    Args:
        path: the file.
        holds_path: of which keys the backslashes are part of a path.
    """
    if path.stat().st_size > MOST_BYTES:
        return [], [f"{path} is far too long for a file of settings; name another one."]
    text = _keep_backslashes(_decode(path.read_bytes()), holds_path)
    lines: list[EnvLine] = []
    problems = []
    for line in parse_stream(io.StringIO(text)):
        where = f"line {line.original.line} of {path}"
        if line.error:
            problems.append(f"{where} cannot be understood; write KEY=value and close each quote.")
        elif "\0" in line.original.string:
            problems.append(f"{where} holds a zero byte; write the line anew.")
        elif line.key is not None:
            lines.append((line.key.strip(), line.value, where))
    return lines, problems


def write_env(path: Path, values: Mapping[str, str]) -> Path | None:
    """Set keys of a `.env`, keeping its comments and its other lines; it is UTF-8 afterwards.

    Returns where the file as it was is kept, or None if there was none.

    Raises:
        UserError: it cannot be written.
    """
    backup, text = None, ""
    if path.is_symlink():  # the file behind it is meant, not the link
        path = path.resolve()
    aside = path.with_name(path.name + ".part")
    try:
        if path.is_file():
            backup = unused_path(path.with_name(path.name + ".backup"))
            shutil.copy2(path, backup)  # with its rights
            text = _decode(path.read_bytes())
        aside.touch(mode=0o600)  # there may be a token in it
        aside.write_text(_with_values(text, values), encoding="utf-8", newline="")
        if backup is not None:
            shutil.copymode(backup, aside)
        aside.replace(path)
    except OSError as error:
        raise UserError(f"--write-env: cannot write {path} ({error}); it is as it was.") from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
    return backup


def env_line(key: str, value: str) -> str:
    """A line of a `.env` that is read as this value, also where it is a path: of a quoted path
    each backslash is itself, so that one is written only where it cannot be done without."""
    if _NEEDS_QUOTES.search(value):
        if "'" in value and not {'"', "\\"} & set(value):
            value = f'"{value}"'
        else:
            value = "'" + _ESCAPED.sub(r"\\\g<0>", value) + "'"
    return f"{key}={value}"


def unused_path(path: Path) -> Path:
    """`path`, or with the first number that is free: an earlier copy may be the user's own."""
    numbered = (path.with_name(f"{path.name}{number}") for number in itertools.count(2))
    return next(it for it in itertools.chain([path], numbered) if not it.exists())


def _with_values(text: str, values: Mapping[str, str]) -> str:
    """dotenv's own `set_key` would drop the comment behind a value, and empty lines."""
    newline = "\r\n" if "\r\n" in text else "\n"
    for key, value in values.items():
        line = re.compile(
            rf"^([ \t]*(?:export[ \t]+)?{key}[ \t]*)={_VALUE}([ \t]+#[^\r\n]*)?(?=[ \t]*\r?$)",
            re.MULTILINE | re.IGNORECASE,
        )
        new = env_line(key, value)
        if found := line.search(text):
            new = found[1] + new.removeprefix(key) + (found[2] or "")
            text = text[: found.start()] + new + text[found.end() :]
        else:
            text += ("" if not text or text.endswith("\n") else newline) + new + newline
    return text


def _decode(raw: bytes) -> str:
    """Text of a file written by Notepad, PowerShell (`>` writes UTF-16) or a Linux editor."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return raw.decode("utf-16", errors="replace")
    if raw[1:2] == b"\0":
        return raw.decode("utf-16-le", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _keep_backslashes(text: str, holds_path: Callable[[str], bool]) -> str:
    r"""Double the backslashes of quoted paths: dotenv would read `"C:\new"` as a line break."""
    lines = []
    for line in text.splitlines():
        key, sign, value = line.partition("=")
        quoted = value.strip()[:1] in {'"', "'"}
        if sign and quoted and holds_path(key.strip().removeprefix("export ").strip()):
            line = key + sign + value.replace("\\", "\\\\")
        lines.append(line)
    return "\n".join(lines) + "\n"
