"""What a prepare run tells: the account per channel, warnings, what to type next."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from discord_lora.messages.account import ChannelCount, PrepareReport
from discord_lora.messages.detect import Format
from discord_lora.messages.output import file_hash, write_whole
from discord_lora.messages.prepare import PrepareOptions
from discord_lora.messages.sources.data_package import WHAT_IT_CAN_GIVE
from discord_lora.typed_command import script_command

_MOST_CHANNELS = 20
_MOST_LINES = 10


def print_report(
    console: Console, report: PrepareReport, options: PrepareOptions, seconds: float
) -> None:
    """Print everything about the run; message texts are never shown."""
    if report.channels:
        console.print(_channel_table(report))
    for line in _summary(report, options, seconds):
        console.print(line, markup=False)
    for warning in _first_of(report.warnings):
        console.print(f"warning: {warning}", style="yellow", markup=False)
    if report.has_data_package:
        console.print(WHAT_IT_CAN_GIVE, markup=False)
    console.print(what_next(options.out), markup=False)


def write_json(report: PrepareReport, training_data: Path, path: Path) -> None:
    """The whole account as one JSON object, every channel included. Raises UserError.

    A hash of the training data says which file it is the account of.
    """
    account = {
        "training_data_hash": file_hash(training_data),
        "read": report.read,
        "kept": report.kept,
        "dropped": dict(report.dropped),
        "replies": report.replies,
        "answered_replies": report.answered_replies,
        "people": report.people,
        "conversations": report.conversations,
        "rejects": report.rejects,
        "unrecognised": [reject.file for reject in report.unrecognised],
        "warnings": report.warnings,
        "channels": [_channel_as_json(count) for count in report.channels],
    }
    write_whole(path, orjson.dumps(account, option=orjson.OPT_INDENT_2), "--json")


def _channel_as_json(count: ChannelCount) -> dict[str, Any]:
    return {
        "guild": count.channel.guild,
        "channel_id": count.channel.id,
        "channel": count.channel.name,
        "read": count.read,
        "kept": count.kept,
        "dropped": dict(count.dropped),
    }


def _channel_table(report: PrepareReport) -> Table:
    table = Table(show_footer=len(report.channels) > 1)
    table.add_column("channel", "all", overflow="fold")
    table.add_column("read", f"{report.read:,}", justify="right")
    table.add_column("kept", f"{report.kept:,}", justify="right")
    table.add_column("dropped, by reason", _reasons(report.dropped))
    largest = sorted(report.channels, key=lambda count: -count.read)
    for count in largest[:_MOST_CHANNELS]:
        _add_row(table, _name_of(count), count)
    if rest := largest[_MOST_CHANNELS:]:
        _add_row(table, f"{len(rest):,} smaller channels", _together(rest))
    return table


def _name_of(count: ChannelCount) -> str:
    channel = count.channel
    return f"{channel.guild} / {channel.name}" if channel.guild else channel.name


def _together(counts: list[ChannelCount]) -> ChannelCount:
    total = ChannelCount(counts[0].channel)
    for count in counts:
        total.read += count.read
        total.kept += count.kept
        total.dropped.update(count.dropped)
    return total


def _add_row(table: Table, name: str, count: ChannelCount) -> None:
    # Text, since a channel may be called [bold].
    table.add_row(Text(name), f"{count.read:,}", f"{count.kept:,}", _reasons(count.dropped))


def _reasons(dropped: Counter[str]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in dropped.most_common())


def _summary(report: PrepareReport, options: PrepareOptions, seconds: float) -> list[str]:
    dropped = sum(report.dropped.values())
    lines = [
        f"{report.read:,} messages read = {report.kept:,} kept + {dropped:,} dropped",
        f"replies recognised: {report.replies:,} ({report.answered_replies:,} of them answer a "
        f"message that is here); people: {report.people:,}",
        f"written to {options.out} in {seconds:.1f} s",
    ]
    if report.conversations:
        lines.append(f"ready conversations taken as they are: {report.conversations:,}")
    if report.rejects:
        lines.append(f"pieces that could not be read: {report.rejects:,} (see {options.rejects})")
    if media := report.files[Format.MEDIA]:
        lines.append(f"media files left out: {media:,}")
    if report.unrecognised:
        lines.append(f"files not recognised and not read: {len(report.unrecognised):,}")
        told = [f"{reject.file}: {reject.reason}" for reject in report.unrecognised]
        lines.extend(f"  {line}" for line in _first_of(told))
    return lines


def _first_of(lines: list[str]) -> list[str]:
    more = len(lines) - _MOST_LINES
    return lines[:_MOST_LINES] + ([f"… and {more:,} more like these"] if more > 0 else [])


def what_next(out: Path) -> str:
    """What to type when `out` is the training data."""
    usual = out == Path("data/training_data.jsonl")
    file = () if usual else ("--training-data-path", out)
    return (
        f"next: {script_command('scripts/analyze_training_data.py', *file)}\n"
        f"then: {script_command('training/train_lora.py', *file)}"
    )
