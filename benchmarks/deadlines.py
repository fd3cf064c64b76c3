"""Short nights, planned and run: does training end when the plan said, and within the time allowed?

    python benchmarks/deadlines.py
    python benchmarks/deadlines.py --minutes 5,10

For each of so many minutes `analyze_training_data.py --hours` makes its plan, after --calibrate,
and writes its lines, with which `train_lora.py` then runs the sample model on the sample chat.
Nothing else should run meanwhile.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from discord_lora.console import UserError, make_console, run_script  # noqa: E402
from prediction import as_options, data_files, run  # noqa: E402


def main() -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--minutes", default="2,3,5", metavar="NUMBERS", help="allowed (default: 2,3,5)"
    )
    minutes = [float(number) for number in parser.parse_args().minutes.split(",")]
    keep_deadlines(minutes, make_console())
    return None


def keep_deadlines(minutes: list[float], console: Console) -> None:
    """Plan for each, train as planned, and say what share of the time it took."""
    table = Table(title="short nights, planned and run", box=box.ASCII)
    for heading in ("minutes allowed", "steps planned", "minutes taken", "share"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as name:
        folder = Path(name)
        settings = {
            "training_data_path": data_files(folder, console)["all"],
            "max_validation_messages": 100,
            "logs_dir": folder / "logs",
        }
        env = folder / "night.env"
        env.write_text("# the plan's lines come here\n")
        options = [*as_options(settings), "--env-file", str(env)]
        analyze = [sys.executable, str(ROOT / "scripts" / "analyze_training_data.py"), *options]
        for number, allowed in enumerate(minutes):
            ask = ["--hours", str(allowed / 60), "--write-env", *(["--calibrate"] * (number == 0))]
            console.print(f"{allowed:g} minutes", markup=False)
            planned = subprocess.run([*analyze, *ask], stdout=subprocess.DEVNULL, check=False)
            if planned.returncode:
                raise UserError(f"The plan ended with {planned.returncode}; see its lines above.")
            seconds, _ = run([*options, "--output-dir", str(folder / "adapters")])
            steps = next(line for line in env.read_text().splitlines() if "MAX_STEPS=" in line)
            share = seconds / 60 / allowed
            table.add_row(
                f"{allowed:g}", steps.partition("=")[2], f"{seconds / 60:.2f}", f"{share:.0%}"
            )
            console.print(table)


if __name__ == "__main__":
    run_script(main)
