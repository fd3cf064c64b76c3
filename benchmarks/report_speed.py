"""How long the data report takes and how much memory, up to a million messages.

Each line is the real script in a process of its own, from its start to its end. The messages are
a file's own (default: the sample chat's), repeated under new ids until there are as many as the
line says, each copy a 64th of the whole time later than the one before, so that they overlap.
`all different` adds letters to the words of each copy, so that no text stands there twice: more
work for finding near repeats.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import orjson
import psutil
from rich.console import Console
from rich.table import Table

from discord_lora.console import UserError, make_console, plainly, run_script
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "analyze_training_data.py"
SECONDS_BETWEEN_LOOKS = 0.005
MANY, MOST = 63_000, 1_000_000
EXAMPLES = """\
  python benchmarks/report_speed.py                             the sample chat, repeated
  python benchmarks/report_speed.py data/training_data.jsonl    your server, repeated
  python benchmarks/report_speed.py --most 200000               smaller"""


@dataclass(frozen=True)
class Run:
    """One line of the table. `target` is what it should stay below: seconds and GB."""

    name: str
    messages: int
    tokens: bool = False
    different: bool = False
    target: tuple[float, float | None] | None = None


@dataclass(frozen=True)
class Measured:
    seconds: float
    peak_bytes: int


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("path", nargs="?", type=Path, help="a training_data.jsonl (default: the sample chat)")
    add("--most", type=int, default=MOST, metavar="N", help="messages of the largest run")
    add_setting_options(parser, ("base_model",))
    args, settings = parse_with_settings(parser)
    from discord_lora.model_location import locate_base_model

    console = make_console()
    model = locate_base_model(settings.base_model, plainly(console))
    most = max(2, args.most)
    at_most = (15.0, 1.5) if most == MOST else None
    runs = (
        Run("no tokens", MANY, target=(3.0, None)),
        Run("with tokens", MANY, tokens=True, target=(7.0, None)),
        Run("no tokens, half", most // 2),
        Run("no tokens", most, target=at_most),
        Run("all different", most, different=True),
    )
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        lines = first_lines(args.path, Path(folder), console)
        measured = [measure(run, lines, Path(folder), model) for run in runs]
    show(runs, measured, console)
    return None


def first_lines(path: Path | None, folder: Path, console: Console) -> list[bytes]:
    """The messages to repeat, as lines."""
    from discord_lora.messages.prepare import PrepareOptions, prepare
    from discord_lora.sample import sample_chat_export

    if path is None:
        path = folder / "sample.jsonl"
        prepare(PrepareOptions((sample_chat_export(Path.cwd(), plainly(console)),), path))
    elif not path.is_file():
        raise UserError(f"There is no file {path}; name a training_data.jsonl.")
    return path.read_bytes().splitlines()


def repeated(lines: list[bytes], count: int, different: bool) -> Iterator[bytes]:
    """`count` messages with ids of their own, each copy later than the one before."""
    messages = [orjson.loads(line) for line in lines]
    if not all("timestamp" in it and "reply_to" in it for it in messages):
        raise UserError("This file is not by prepare_training_data.py; name one that is.")
    times = [datetime.fromisoformat(it["timestamp"]) for it in messages]
    span = max(times) - min(times) + timedelta(days=1)
    for number in range(count):
        copy, place = divmod(number, len(messages))
        message = dict(messages[place])
        if copy:
            message["id"] += f"{copy:03}"
            message["reply_to"] = message["reply_to"] and f"{message['reply_to']}{copy:03}"
            message["timestamp"] = times[place] + copy * span / 64  # ends before the year 2200
            if different:
                message["content"] = re.sub(r"(?<=\w{3})\b", letters(copy), message["content"])
        yield orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)


def letters(copy: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(copy))


def measure(run: Run, lines: list[bytes], folder: Path, model: str) -> Measured:
    data = folder / "repeated.jsonl"
    with data.open("wb") as stream:
        stream.writelines(repeated(lines, run.messages, run.different))
    command = [sys.executable, str(SCRIPT), "--training-data-path", str(data)]
    command += ["--no-plan", "--base-model", model] if run.tokens else ["--no-tokens"]
    peak = 0
    began = time.perf_counter()
    with psutil.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise UserError("The report failed; run analyze_training_data.py on that file.")
    return Measured(time.perf_counter() - began, peak)


def show(runs: tuple[Run, ...], measured: list[Measured], console: Console) -> None:
    table = Table("report", "messages", "seconds", "messages/s", "peak GB", "target")
    for run, found in zip(runs, measured, strict=True):
        seconds, gigabytes = run.target or (None, None)
        target = f"{seconds:g} s" if seconds else ""
        target += f", {gigabytes:g} GB" if gigabytes else ""
        table.add_row(
            run.name,
            f"{run.messages:,}",
            f"{found.seconds:.2f}",
            f"{run.messages / found.seconds:,.0f}",
            f"{found.peak_bytes / 1e9:.2f}",
            target,
        )
    console.print(table)
    slower = measured[3].seconds / measured[2].seconds
    console.print(f"twice the messages take {slower:.2f} times the seconds")


if __name__ == "__main__":
    run_script(main)
