"""Messages with their context as a CSV to tick off in a spreadsheet, and the ticks read back.

Spreadsheets damage what they open: ids of 19 digits lose their last ones, so a message is known
by a key that is no number; a text that begins with = would run, so it gets an apostrophe in
front. Both ways of parting cells are guarded against, since a spreadsheet of another country
opens the same file with semicolons. Only `keep` and `key` are read back, in any order of columns.
"""

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from discord_lora.analysis.filtering.choose import Mask
from discord_lora.analysis.report.measure import Measures
from discord_lora.console import UserError, printable
from discord_lora.messages.csv_rows import NamedRow, read_named_rows
from discord_lora.messages.output import AtomicFile, cannot_be_written

COLUMNS = ("keep", "key", "quality", "time", "channel", "author", "before", "message")
_MESSAGES_BEFORE = 3
_LONGEST_BEFORE, _LONGEST_MESSAGE = 300, 4000
_FORMULA_START = re.compile(r"(^|[;,\t|\"'\n])(\s*)(?=[=+\-@＝＋－＠])")
_PLAIN_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_YES = {
    "x", "1", "1.0", "1,0", "y", "yes", "j", "ja", "true", "wahr", "vrai", "o", "oui", "s", "si",
    "sí", "sim", "ok", "k", "keep", "+", "✓", "✔", "☑", "☒",
}  # fmt: skip
_NO = {"", "0", "0.0", "0,0", "n", "no", "nein", "false", "falsch", "faux", "non", "não", "-", "☐"}
_MOST_NAMED = 3
_ONE_CELL = re.compile(r'"?keep"?,"?key\b')
"""The first line where a spreadsheet has not parted it."""

Whole = npt.NDArray[np.int64]


def write_csv(measures: Measures, chosen: Mask, timezone: str, path: Path) -> None:
    """Write the chosen messages, each behind what was said before it.

    Raises:
        UserError: there is such a file already, or it cannot be written.
    """
    if path.exists():
        raise UserError(
            f"{path} is there already, perhaps with your ticks: read it with --picked {path}, "
            "delete it, or choose another place with --out FILE."
        )
    try:
        with AtomicFile(path) as file:
            text = io.TextIOWrapper(file.stream, encoding="utf-8-sig", errors="replace", newline="")
            writer = csv.writer(text, quoting=csv.QUOTE_ALL)
            writer.writerow(COLUMNS)
            writer.writerows(_rows(measures, chosen, timezone))
            text.flush()
            text.detach()
    except OSError as error:
        raise cannot_be_written(path, error, "--out") from None


def read_ticks(path: Path, ids: pl.Series) -> frozenset[str]:
    """The ids of the ticked messages; `ids` are those of the data.

    Takes what spreadsheets save: commas, semicolons or tabs, UTF-8, UTF-16 or an older code page.

    Raises:
        UserError: it cannot be read, is no such CSV, or something in it is no tick; all at once.
    """
    try:
        with path.open("rb") as stream:
            if stream.read(4) == b"PK\x03\x04":
                raise UserError(
                    f"--picked: {path} is a spreadsheet's own format; save it as CSV there."
                )
        rows = list(read_named_rows(lambda: path.open("rb")))
    except OSError as error:
        reason = (error.strerror or "not possible").lower()
        raise UserError(
            f"--picked: {path} cannot be read: {reason}. Close it in the spreadsheet, or name "
            "the CSV that --hand-pick wrote."
        ) from None
    if rows and any(_ONE_CELL.match(name) for name in rows[0].cells):
        raise UserError(
            f"--picked: {path} has each row in one cell, as a double click opens it where "
            "spreadsheets part cells by semicolons. Write it anew with --hand-pick, open it in "
            "Excel with Data > From Text/CSV and the comma as delimiter, and tick there."
        )
    if not rows or not {"keep", "key"} <= rows[0].cells.keys():
        raise UserError(
            f"--picked: {path} has no columns `keep` and `key` with rows below them; name the CSV "
            "that --hand-pick wrote, with its first line."
        )
    ticked, problems = _ticked_rows(rows)
    if not ticked and not problems:
        problems.append("no message is ticked; write an x into the column keep.")
    if problems:
        more = len(problems) - _MOST_NAMED
        shown = problems[:_MOST_NAMED] + ([f"{more:,} more lines like these."] if more > 0 else [])
        raise UserError(*(f"--picked: {path}: {problem}" for problem in shown))
    return _ids_of(ticked, ids)


def _ticked_rows(rows: Sequence[NamedRow]) -> tuple[list[str], list[str]]:
    """The keys of the ticked rows, and what is wrong with others."""
    ticked, problems = [], []
    for row in rows:
        answer = row.cells.get("keep", "").strip().casefold()
        key = row.cells.get("key", "").strip()
        if answer in _NO:
            continue
        if answer not in _YES:
            problems.append(
                f"line {row.line}: {printable(answer[:20])} in keep; write x, or nothing."
            )
        elif key[:1] not in {"m", "h"} or len(key) < 2:
            problems.append(f"line {row.line}: ticked, but its key is gone; undo that change.")
        else:
            ticked.append(key)
    return ticked, problems


def _key_of(message_id: str) -> str:
    """A name that every spreadsheet keeps: an id that might be a formula is hashed."""
    if _PLAIN_ID.fullmatch(message_id):
        return f"m{message_id}"
    return "h" + hashlib.blake2b(message_id.encode(), digest_size=16).hexdigest()


def _ids_of(keys: Sequence[str], ids: pl.Series) -> frozenset[str]:
    hashed = {}
    if any(key.startswith("h") for key in keys):
        hashed = {_key_of(it): it for it in ids if not _PLAIN_ID.fullmatch(it)}
    return frozenset(hashed.get(key, key) if key[0] == "h" else key[1:] for key in keys)


# What stands in the cells ----------------------------------------------------------------------


def _rows(measures: Measures, chosen: Mask, timezone: str) -> Iterator[tuple[str, ...]]:
    """The cells of each message, conversation by conversation, oldest first."""
    frame = measures.frame
    conversation = measures.engagement.conversation
    order = (
        frame.select("timestamp", "id")
        .with_columns(conversation=pl.Series(conversation))
        .with_row_index("row")
        .sort("conversation", "timestamp", "id")["row"]
        .to_numpy()
        .astype(np.int64)
    )
    places = np.flatnonzero(chosen[order])
    answered = _answered(frame, order[places].tolist())
    before = [
        _before(place, order, conversation, answered.get(int(order[place])))
        for place in places.tolist()
    ]
    needed = sorted({row for rows in before for row in rows} | set(order[places].tolist()))
    said = _said(frame, needed, timezone)
    for place, rows in zip(places.tolist(), before, strict=True):
        row = int(order[place])
        message_id, time, channel, author, content = said[row]
        earlier = "\n".join(f"{said[it][3]}: {_cut(said[it][4], _LONGEST_BEFORE)}" for it in rows)
        yield (
            "", _key_of(message_id), f"{measures.score[row]:.1f}", time, _guarded(channel),
            _guarded(author), _guarded(earlier), _guarded(_cut(content, _LONGEST_MESSAGE)),
        )  # fmt: skip


def _answered(frame: pl.DataFrame, rows: Sequence[int]) -> dict[int, int]:
    """For each of `rows` that replies to a message of the data the row of that message."""
    targets = frame.lazy().select("id").with_row_index("target")
    replies = frame[list(rows)].lazy().select("reply_to", row=pl.Series(rows, dtype=pl.UInt32))
    pairs = replies.join(targets, left_on="reply_to", right_on="id").select("row", "target")
    return dict(pairs.collect().iter_rows())


def _before(place: int, order: Whole, conversation: Whole, answered: int | None) -> list[int]:
    """Rows of what was said right before in the conversation, behind what the message answers."""
    earlier = order[max(0, place - _MESSAGES_BEFORE) : place]
    rows: list[int] = earlier[conversation[earlier] == conversation[order[place]]].tolist()
    return rows if answered is None or answered in rows else [answered, *rows]


def _said(
    frame: pl.DataFrame, rows: Sequence[int], timezone: str
) -> dict[int, tuple[str, str, str, str, str]]:
    """Id, local time ("" where the file gives none), channel, author and text of each row."""
    local = pl.col("timestamp").dt.convert_time_zone(timezone).dt.strftime("%Y-%m-%d %H:%M")
    shown = frame[list(rows)].select(
        "id",
        pl.when("has_time").then(local).otherwise(pl.lit("")),
        pl.col("channel", "author").cast(pl.String),
        "content",
    )
    return {
        row: (message_id, time, printable(channel), printable(author), printable(content))
        for row, (message_id, time, channel, author, content) in zip(
            rows, shown.iter_rows(), strict=True
        )
    }


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} ..."


def _guarded(text: str) -> str:
    """Nothing in it begins a formula, wherever a spreadsheet may think that a cell begins."""
    return _FORMULA_START.sub(r"\1\2'", text)
