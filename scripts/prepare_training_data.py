"""Turn exports of a Discord server into data/training_data.jsonl, the file everything else reads.

Give it files, folders and ZIPs in any mix. What each one is, is recognised by its content:

  - DiscordChatExporter JSON (best: it has ids and replies), CSV and HTML, of any age
  - Discord's own data package, as a ZIP or a folder (only your own messages are in it)
  - JSON lines or CSV of any tool with text, author and date columns
  - ready conversations: OpenAI `messages` or ShareGPT

Overlapping exports are merged by message id; the later export wins. Members who opted out in the
bot (OPT_OUT_FILE in .env) are left out.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from discord_lora.console import make_console, run_script
from discord_lora.messages.account import PrepareReport
from discord_lora.messages.cleaning import DEFAULT_COMMAND_PREFIXES, STEPS
from discord_lora.messages.opt_out import read_opt_outs
from discord_lora.messages.output import refuse_overwriting
from discord_lora.messages.prepare import PrepareOptions, prepare
from discord_lora.messages.report import print_report, write_json
from discord_lora.settings import load_settings

SECONDS_BETWEEN_LINES = 5.0
EXAMPLES = """
examples:
  python scripts/prepare_training_data.py exports/
      everything in a folder, with the usual cleaning

  python scripts/prepare_training_data.py exports/ newer.zip --names username
      two exports that overlap, people under their account names

  python scripts/prepare_training_data.py exports/ --skip commands --skip bots --drop-links
      keep !commands, keep bots as context that is never imitated, take links out

  python scripts/prepare_training_data.py exports/ --out data/small.jsonl --json data/small.json
      another output file, and the account of every channel as JSON
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    steps = "\n".join(f"  {step.name:<9} {step.description}" for step in STEPS)
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"cleaning steps, in their order:\n{steps}\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("paths", nargs="+", type=Path, metavar="PATH", help="a file, a folder or a ZIP")
    add("--out", type=Path, default=Path("data/training_data.jsonl"), metavar="FILE",
        help="where to write (default: %(default)s)")  # fmt: skip
    add("--names", choices=("nickname", "username"), default="nickname",
        help="call people as the server shows them, or by account (default: nickname)")  # fmt: skip
    add("--skip", action="append", default=[], metavar="STEP",
        choices=[step.name for step in STEPS if step.on_by_default],
        help="leave a cleaning step out; may be given again (steps: below)")  # fmt: skip
    add("--drop-links", action="store_true", help="take links out of the texts")
    add("--command-prefixes", default=DEFAULT_COMMAND_PREFIXES, metavar="CHARS",
        help="what bot commands start with on this server (default: %(default)s)")  # fmt: skip
    add("--json", type=Path, metavar="FILE",
        help="write the account of every channel here, too (default: beside --out)")  # fmt: skip
    return parser.parse_args(arguments)


def main() -> None:
    """Read, merge, clean, write, tell."""
    arguments = parse_arguments()
    options = PrepareOptions(
        paths=tuple(arguments.paths),
        out=arguments.out,
        names=arguments.names,
        skip=frozenset(arguments.skip),
        drop_links=arguments.drop_links,
        command_prefixes=arguments.command_prefixes,
        opted_out=frozenset(read_opt_outs(load_settings().opt_out_file)),
    )
    written = (options.out, options.rejects, options.account)
    refuse_overwriting({"--json": arguments.json}, (*written, *options.paths))
    console = make_console()
    started = time.perf_counter()
    report = prepare_with_progress(options, console)
    print_report(console, report, options, time.perf_counter() - started)
    for account in filter(None, (options.account, arguments.json)):
        write_json(report, options.out, account)


def prepare_with_progress(options: PrepareOptions, console: Console) -> PrepareReport:
    """Run with a bar over the bytes read, or a line now and then where nobody watches a bar."""
    if not console.is_terminal:
        return prepare(options, *progress_lines(console))
    columns = (TextColumn("reading"), BarColumn(bar_width=30), DownloadColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task("reading", total=None)
        return prepare(
            options,
            lambda total: progress.update(task, total=total),
            lambda done: progress.update(task, completed=done),
        )


def progress_lines(console: Console) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """The two callbacks of `prepare` for an output that is no terminal."""
    total_bytes = 0
    told_at = time.monotonic()

    def on_total(total: int) -> None:
        nonlocal total_bytes
        total_bytes = total

    def on_bytes(done: int) -> None:
        nonlocal told_at
        if time.monotonic() - told_at >= SECONDS_BETWEEN_LINES:
            told_at = time.monotonic()
            console.print(f"read {done / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB")

    return on_total, on_bytes


if __name__ == "__main__":
    run_script(main)
