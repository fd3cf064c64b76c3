"""What a filter does, in two tables: before and after, and where each message went."""

from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from discord_lora.analysis.filtering.choose import Choice, Summary
from discord_lora.analysis.report.data_report import Finding
from discord_lora.console import printable
from discord_lora.typed_command import script_command


def print_choice(
    console: Console, before: Summary, after: Summary, choice: Choice, *, remove: bool
) -> None:
    """Print what the messages to learn from are before and after, and why others are not."""
    total = len(choice.chosen)
    kept = after.learned + choice.context_before
    console.print(_before_and_after(before, after, total, kept if remove else total))
    console.print()
    console.print(_account(choice, after, total))
    if choice.gone:
        console.print(f"ticked messages gone because their authors opted out: {choice.gone:,}")
    console.print(
        "What is left out is removed."
        if remove
        else "What is left out stays as context: the model reads it and never imitates it."
    )


def warn(console: Console, findings: Iterable[Finding]) -> None:
    """Say so when the data look filtered already."""
    for finding in findings:
        if finding.key == "filtered_already":
            console.print(f"warning: {finding.sentence}", style="yellow", markup=False)


def print_hand_pick(console: Console, path: Path, ticks: Path, count: int, among: int) -> None:
    """Print what to do with the CSV of --hand-pick."""
    for line in (
        f"the best {count:,} of {among:,} messages are written to {ticks}",
        "Open it in a spreadsheet (in Excel with Data > From Text/CSV, the comma as delimiter),",
        "write an x into keep where a message is worth learning from, save it as CSV, then:",
        f"  {script_command('scripts/filter_training_data.py', path, '--picked', ticks)}",
    ):
        console.print(line, markup=False, soft_wrap=True)


def _before_and_after(before: Summary, after: Summary, total: int, kept: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right")
    rows = {
        "messages in the file": (total, kept),
        "messages to learn from": (before.learned, after.learned),
        "people who wrote them": (before.people, after.people),
        "channels they are in": (before.channels, after.channels),
        "conversations they are in": (before.conversations, after.conversations),
    }
    for name, (one, two) in rows.items():
        table.add_row(name, f"{one:,}", f"{two:,}")
    table.add_row("their mean quality", *(_quality(it) for it in (before, after)))
    return table


def _quality(summary: Summary) -> str:
    return "-" if summary.quality is None else f"{summary.quality:.1f}"


def _account(choice: Choice, after: Summary, total: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("where each message went")
    table.add_column("messages", justify="right")
    table.add_row("chosen", f"{after.learned:,}")
    table.add_row("context only already", f"{choice.context_before:,}")
    for reason, count in choice.left_out.items():
        table.add_row(Text(f"left out: {printable(reason)}"), f"{count:,}")
    table.add_row("together", f"{total:,}")
    return table
