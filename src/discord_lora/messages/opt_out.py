"""Who does not want to be learned from or read: the ledger that the bot's `/optout` writes.

    {"80351110224678912": "2026-03-02T18:00:00+00:00"}

User id and since when. The bot drops these members from its context, and preparing, analysing and
training leave their messages out. Somebody may also write the file by hand: a list of ids, or one
id a line. A ledger that cannot be read stops the program: taken for empty, it would break a
promise without a word.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock

import orjson

from discord_lora.console import UserError

OPTED_OUT = "opted out"
"""The reason under which the messages of these members are counted as dropped."""

_MARK = "\ufeff"


def read_opt_outs(path: Path) -> dict[str, str]:
    """User id → since when ("" where the file does not say); empty when there is no file.

    Raises UserError when the file is there and cannot be understood.
    """
    try:
        text = path.read_bytes().decode("utf-8").removeprefix(_MARK).strip()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"OPT_OUT_FILE: {path} cannot be read ({error}); restore it.") from None
    entries = _entries(text)
    strange = [user_id for user_id in entries if not _is_id(user_id)]
    if strange:
        raise UserError(
            f"OPT_OUT_FILE: {path} holds {strange[0][:40]!r} where a user id is due; write one id "
            "a line, or restore the file."
        )
    return entries


class OptOutLedger:
    """The ledger as the bot keeps it: read once, written with each change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._entries = read_opt_outs(path)
        self._lock = Lock()

    def __contains__(self, user_id: object) -> bool:
        return str(user_id) in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def opt_out(self, user_id: str, now: datetime | None = None) -> bool:
        """Enter a member; False when they were out already. Raises UserError if unwritable."""
        since = (now or datetime.now(UTC)).isoformat(timespec="seconds")
        return self._change(user_id, since)

    def opt_in(self, user_id: str) -> bool:
        """Strike a member out; False when they were not in it. Raises UserError if unwritable."""
        return self._change(user_id, None)

    def _change(self, user_id: str, since: str | None) -> bool:
        if not _is_id(user_id):
            raise ValueError("a user id is a number")
        with self._lock:
            # Read anew: somebody may have written into the file meanwhile.
            entries = read_opt_outs(self.path)
            changed = (user_id in entries) != (since is not None)
            if since is None:
                entries.pop(user_id, None)
            else:
                entries.setdefault(user_id, since)
            if changed:
                _write(self.path, entries)
            self._entries = entries
        return changed


def _entries(text: str) -> dict[str, str]:
    if text[:1] not in {"{", "["}:
        lines = (line.partition("#")[0].split(maxsplit=1) for line in text.splitlines())
        return {line[0]: line[1].strip() if len(line) > 1 else "" for line in lines if line}
    try:
        value = orjson.loads(text)
    except ValueError:
        return {text: ""}
    if isinstance(value, Mapping):
        return {str(key): since if isinstance(since, str) else "" for key, since in value.items()}
    return {str(entry): "" for entry in value}


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _write(path: Path, entries: Mapping[str, str]) -> None:
    """Whole or not at all: written aside, then moved into place."""
    aside = path.with_name(f"{path.name}.part")
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(orjson.dumps(entries, option=options))
        aside.replace(path)
    except OSError as error:
        raise UserError(
            f"OPT_OUT_FILE: {path} cannot be written ({error.strerror}); choose another place."
        ) from None
