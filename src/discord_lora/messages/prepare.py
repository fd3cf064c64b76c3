"""Exports → `training_data.jsonl`: read everything, merge by id, clean, write, account for it."""

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from discord_lora.console import UserError
from discord_lora.messages.account import (
    DUPLICATE,
    ChannelCount,
    PrepareReport,
    account_beside,
)
from discord_lora.messages.cleaning import (
    DEFAULT_COMMAND_PREFIXES,
    Cleaner,
    CleaningContext,
    command_pattern,
)
from discord_lora.messages.cycle_collection import without_cycle_collection
from discord_lora.messages.inputs import find_inputs
from discord_lora.messages.opt_out import OPTED_OUT
from discord_lora.messages.output import AtomicFile
from discord_lora.messages.people import NameChoice
from discord_lora.messages.reading import Reader
from discord_lora.messages.record import Message
from discord_lora.messages.store import MessageStore, StoredMessage
from discord_lora.messages.timestamps import from_microseconds
from discord_lora.messages.training_data import write_line

_MOST_NAMED = 5


@dataclass(frozen=True)
class PrepareOptions:
    """What to read, where to write, how to clean."""

    paths: tuple[Path, ...]
    out: Path
    names: NameChoice = "nickname"
    skip: frozenset[str] = frozenset()
    drop_links: bool = False
    command_prefixes: str = DEFAULT_COMMAND_PREFIXES
    opted_out: frozenset[str] = frozenset()
    """Ids of members whose messages are left out."""

    @property
    def rejects(self) -> Path:
        """Where the pieces go that cannot be read."""
        return self.out.with_name(f"{self.out.stem}.rejects.jsonl")

    @property
    def account(self) -> Path:
        """Where the account goes, for who looks at the training data later."""
        return account_beside(self.out)


ProgressStart = Callable[[int], None]
ProgressStep = Callable[[int], None]


def prepare(
    options: PrepareOptions,
    on_total: ProgressStart = lambda _: None,
    on_bytes: ProgressStep = lambda _: None,
) -> PrepareReport:
    """Read `options.paths` and write `options.out` and its rejects file.

    `on_total` and `on_bytes` report the reading in bytes. Raises UserError when a path is
    missing, the output cannot be written, or nothing is left to learn from; the previous output
    then stays as it was.
    """
    report = PrepareReport()
    with ExitStack() as stack:
        stack.enter_context(without_cycle_collection())
        inputs = find_inputs(options.paths, never=(options.out, options.rejects, options.account))
        stack.enter_context(inputs.closers)
        out = stack.enter_context(AtomicFile(options.out))
        rejects = stack.enter_context(AtomicFile(options.rejects))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="discord-lora-"))
        store = stack.enter_context(MessageStore(Path(folder, "messages.sqlite"), options.names))
        on_total(inputs.bytes)
        try:
            write_reject = partial(write_line, rejects.stream)
            Reader(store, report, write_reject, on_bytes).read(inputs)
            store.finish()
            _write_cleaned(store, options, report, out)
        except sqlite3.OperationalError as error:
            raise UserError(
                f"The working copy in {folder} cannot be written ({error}): free some disk space."
            ) from None
        _refuse_nothing_left(report, options)
    if not report.rejects:
        options.rejects.unlink()
    return report


def _write_cleaned(
    store: MessageStore, options: PrepareOptions, report: PrepareReport, out: AtomicFile
) -> None:
    """The second pass: merged messages through the cleaning steps into the output."""
    report.channels = [ChannelCount(channel) for channel in store.channels]
    report.replies, report.answered_replies = store.count_replies()
    report.people = store.authors
    stored: Counter[int] = Counter()
    cleaner = Cleaner(
        _cleaning_context(store, options), options.skip, drop_links=options.drop_links
    )
    for message in store.messages():
        stored[message.channel] += 1
        count = report.channels[message.channel]
        if message.author_id in options.opted_out:
            count.dropped[OPTED_OUT] += 1
        elif reason := cleaner.clean(message):
            count.dropped[reason] += 1
        else:
            count.kept += 1
            write_line(out.stream, _finished(message, store))
    for line in store.conversations():
        out.stream.write(line + b"\n")
    for number, count in enumerate(report.channels):
        count.read = store.read[number]
        if copies := count.read - stored[number]:
            count.dropped[DUPLICATE] += copies


def _cleaning_context(store: MessageStore, options: PrepareOptions) -> CleaningContext:
    names = {channel.id: channel.name for channel in store.channels}
    command = command_pattern(options.command_prefixes)
    return CleaningContext(store.people.name_of, names.get, command)


def _finished(message: StoredMessage, store: MessageStore) -> Message:
    channel = store.channels[message.channel]
    who = message.author_id
    return Message(
        id=message.id,
        guild=channel.guild,
        channel_id=channel.id,
        channel=channel.name,
        timestamp=from_microseconds(message.time),
        author_id=who,
        author=store.people.name_of(who) or who,
        username=store.people.username_of(who),
        content=message.content,
        reply_to=message.reply_to,
        reactions=message.reactions,
        is_bot=message.is_bot,
        train=message.train,
    )


def _refuse_nothing_left(report: PrepareReport, options: PrepareOptions) -> None:
    if report.kept or report.conversations:
        return
    if report.read:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in report.dropped.most_common())
        raise UserError(
            f"All {report.read:,} messages were dropped ({reasons}). Switch a step off with "
            "--skip STEP (--help lists them), or name an export that holds talk."
        )
    looked_at = ", ".join(str(path) for path in options.paths[:_MOST_NAMED])
    seen = "; ".join(_what_was_wrong(report))
    raise UserError(
        f"No messages were found in {looked_at}{f' ({seen})' if seen else ''}. Export the server "
        "as JSON with DiscordChatExporter and name the folder it wrote."
    )


def _what_was_wrong(report: PrepareReport) -> Iterator[str]:
    if reject := report.first_reject:
        yield f"{reject.file}, {reject.place}: {reject.reason}"
        yield f"unreadable pieces in all: {report.rejects:,}"
    yield from (f"{reject.file}: {reject.reason}" for reject in report.unrecognised[:_MOST_NAMED])
