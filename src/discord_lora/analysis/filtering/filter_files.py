"""The files around filtering: where the result goes, how it is written, the copy of what was."""

import shutil
from pathlib import Path

import numpy as np

from discord_lora.analysis.filtering.choose import Mask
from discord_lora.analysis.report.columns import MessageColumns
from discord_lora.console import UserError
from discord_lora.env_file import unused_path
from discord_lora.messages.opt_out import OPTED_OUT
from discord_lora.messages.output import AtomicFile, cannot_be_written
from discord_lora.messages.rewrite import Fate, rewrite
from discord_lora.messages.training_data import DUPLICATE


def refuse_ready(columns: MessageColumns, path: Path) -> None:
    """Raise UserError for ready conversations: their turns belong together."""
    if columns.account.conversations:
        raise UserError(
            f"{path} holds ready conversations (OpenAI, ShareGPT): their turns belong together, "
            'and the filter chooses single messages. Leave out whole lines, or write "train": '
            "false into a turn."
        )


def place_for(path: Path, out: Path | None, ending: str) -> Path:
    """`out`, or the name beside `path` with `ending`. Raises UserError when that is `path`."""
    place = out or path.with_name(f"{path.stem}{ending}")
    if place.resolve() == path.resolve() or (place.exists() and place.samefile(path)):
        raise UserError(
            f"--out: {place} is the training data itself; choose another file, or --in-place, "
            "which keeps a copy."
        )
    return place


def write_filtered(
    columns: MessageColumns, chosen: Mask, path: Path, out: Path | None, *, remove: bool
) -> Path | None:
    """Write the training data with what is not chosen as context, or without it.

    `out` None writes in place of `path`; returned is then where the file as it was is kept.

    Raises:
        UserError: it cannot be written, or `path` was changed meanwhile.
    """
    place, backup = out or path, None
    try:
        with AtomicFile(place) as file:
            rewrite(path, fates_of(columns, chosen, remove=remove), file.stream)
            if out is None:
                backup = unused_path(path.with_name(f"{path.name}.backup"))
                shutil.copy2(path, backup)
    except OSError as error:
        if backup is not None:
            backup.unlink(missing_ok=True)  # nothing was replaced
        raise cannot_be_written(place, error, "--out") from None
    return backup


def fates_of(columns: MessageColumns, chosen: Mask, *, remove: bool) -> bytes:
    """One `Fate` for each message that the file has; an older one of the same id goes
    anyway, and so do the messages of members who opted out."""
    dropped = columns.account.dropped
    count = len(columns.frame) + dropped[DUPLICATE] + dropped[OPTED_OUT]
    fates = np.full(count, Fate.REMOVED, np.uint8)
    left_out = columns.frame["train"].to_numpy() & ~chosen
    otherwise = Fate.REMOVED if remove else Fate.CONTEXT
    fates[columns.records] = np.where(left_out, otherwise, Fate.KEPT)
    return fates.tobytes()
