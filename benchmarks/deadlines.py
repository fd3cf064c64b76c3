"""Short nights, planned and run: does training end when the plan said, and within the time allowed?

    python benchmarks/deadlines.py
    python benchmarks/deadlines.py --minutes 5,10

After one --calibrate, `analyze_training_data.py --ready-by` plans for the next whole minute that is
at least so many minutes away and writes its lines, with which `train_lora.py` then runs the sample
model on the sample chat. The time allowed is that from the end of the analysis to the deadline, the
time taken that of the whole training program. It ends with 1 unless each took between 80 and 100 %
of the time allowed. Nothing else should run meanwhile.
"""

import argparse
import subprocess
import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from discord_lora.console import UserError, make_console, run_script  # noqa: E402
from discord_lora.env_file import env_line  # noqa: E402
from prediction import as_options, data_files, run  # noqa: E402

LEAST, MOST = 0.8, 1.0
"""Share of the time allowed: what is over early has learned less than it could."""


def main() -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--minutes", default="2,3,5", metavar="NUMBERS", help="at least (default: 2,3,5)"
    )
    minutes = [float(number) for number in parser.parse_args().minutes.split(",")]
    console = make_console()
    shares = keep_deadlines(minutes, console)
    kept = sum(LEAST <= share <= MOST for share in shares)
    between = f"{100 * LEAST:g} and {100 * MOST:g} %"
    console.print(f"{kept} of {len(shares)} ended between {between} of the time allowed")
    return int(kept < len(shares))


def keep_deadlines(minutes: list[float], console: Console) -> list[float]:
    """Plan for each and train as planned; what share of the time each took."""
    table = Table(title="short nights, planned and run", box=box.ASCII)
    for heading in ("ready by", "steps planned", "minutes allowed", "minutes taken", "share"):
        table.add_column(heading, justify="right")
    shares = []
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as name:
        folder = Path(name)
        settings = {
            "training_data_path": data_files(folder, console)["all"],
            "max_validation_messages": 100,
            "logs_dir": folder / "logs",
        }
        env = folder / "night.env"  # the plan's lines come here
        env.write_text(env_line("OUTPUT_DIR", str(folder / "adapters")) + "\n", encoding="utf-8")
        options = [*as_options(settings), "--env-file", str(env)]
        analyze([*options, "--calibrate"])
        for at_least in minutes:
            deadline = deadline_after(datetime.now(), at_least)
            console.print(f"at least {at_least:g} minutes", markup=False)
            analyze([*options, "--ready-by", f"{deadline:%H:%M}", "--write-env"])
            allowed = (deadline - datetime.now()).total_seconds()
            seconds, _ = run(options)
            shares.append(seconds / allowed)
            lines = env.read_text(encoding="utf-8").splitlines()
            table.add_row(
                f"{deadline:%H:%M}",
                next(line for line in lines if "MAX_STEPS=" in line).partition("=")[2],
                f"{allowed / 60:.2f}",
                f"{seconds / 60:.2f}",
                f"{shares[-1]:.0%}",
            )
            console.print(table)
    return shares


def deadline_after(now: datetime, minutes: float) -> datetime:
    """The next whole minute that is at least so many minutes away."""
    earliest = now + timedelta(minutes=minutes)
    whole = earliest.replace(second=0, microsecond=0)
    return whole if whole == earliest else whole + timedelta(minutes=1)


def analyze(options: list[str]) -> None:
    """Run analyze_training_data.py. Raises UserError when it fails."""
    words = [sys.executable, str(ROOT / "scripts" / "analyze_training_data.py"), *options]
    planned = subprocess.run(words, stdout=subprocess.DEVNULL, check=False)
    if planned.returncode:
        raise UserError(f"The plan ended with {planned.returncode}; see its lines above.")


if __name__ == "__main__":
    run_script(main)
