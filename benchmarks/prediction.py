"""Predicted against measured: time and memory of whole runs, before and after calibration.

    python benchmarks/prediction.py

Each case is a real run of the sample model on the sample chat, as a program of its own. Before it
the plan is made twice: from formulas alone, and after `--calibrate`. The time is that of the whole
program, start to end; the memory the most that it held. Eleven minutes a case on two cores, and
nothing else should run meanwhile: a column of the table says what share of all processors other
programs had.

What a machine that others share will do, no plan knows. So a second calibration follows the run,
and what it says, divided by what the first one said, is the column `after`. Where the two are more
than 7 % apart, the case's time says nothing about the plan: all cases done, it is run again, at
most twice, and the last one counts. Memory counts each time. Nothing is left out of the table. It
ends with 1 where a calibrated plan missed a memory, or more than one time in eight, or one from
formulas alone was off by more than a factor of 1.5.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import psutil  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from discord_lora.console import UserError, make_console, plainly, run_script  # noqa: E402

EXAMPLES = """
examples:
  python benchmarks/prediction.py                     all eight cases
  python benchmarks/prediction.py --only 1,4 --steps 40
  python benchmarks/prediction.py --json done.json    keeps each case; goes on where it was stopped
"""

PERSONA = "gentle.bison"
TIME_WITHIN, MEMORY_WITHIN = 0.10, 0.07
MODELLED_WITHIN = 1.5
PACE_WITHIN, TRIES = 0.07, 3
SHORT_CHARACTERS = 25
"""About the median message of the sample chat."""


@dataclass(frozen=True, slots=True)
class Case:
    """One run."""

    voice: str
    messages: str
    """`all`, `short` or `long`."""
    checkpointing: str
    token_budget: str

    @property
    def name(self) -> str:
        layers = "checkpointed" if self.checkpointing == "true" else "kept"
        return f"{self.voice}, {self.messages}, {layers}, budget {self.token_budget}"


CASES = (
    Case("server", "all", "false", "auto"),
    Case("server", "all", "true", "auto"),
    Case("server", "all", "false", "128"),
    Case("server", "short", "false", "auto"),
    Case("server", "long", "false", "auto"),
    Case("persona", "all", "false", "auto"),
    Case("persona", "all", "true", "auto"),
    Case("persona", "long", "false", "128"),
)


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds so far: of processors at work, of this program and those it started, of a clock.

    (Windows does not tell what started programs took: all of it is others there.)
    """

    all: float
    own: float
    clock: float

    @classmethod
    def now(cls) -> "Busy":
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        return cls(sum(times[:8]) - idle, sum(os.times()[:4]), time.perf_counter())

    def share_of_others_since(self, before: "Busy") -> float:
        others = (self.all - before.all) - (self.own - before.own)
        return others / (self.clock - before.clock) / (psutil.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class Predicted:
    """Before a run."""

    seconds: float
    peak_bytes: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One case, done."""

    case: Case
    modelled: Predicted
    calibrated: Predicted
    seconds: float
    peak_bytes: float
    others: float
    """Share of all processors that other programs had meanwhile: what they take, no plan knows."""
    after: float
    """What calibrating says after the run, in times of what it said before: how much the pace of
    this very work has changed. Another machine on the same processor is seen nowhere else."""

    @property
    def off_when_modelled(self) -> float:
        """Time by formulas alone, in times of what was measured."""
        return self.modelled.seconds / self.seconds

    @property
    def is_steady(self) -> bool:
        """Whether the machine kept its pace, so that the time says something about the plan."""
        return abs(self.after - 1) <= PACE_WITHIN


def main() -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="(default: 100)")
    numbers = [str(number) for number in range(1, len(CASES) + 1)]
    parser.add_argument(
        "--only", default=",".join(numbers), metavar="NUMBERS", help="cases, such as 1,4"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="figures; what it says already is not run again"
    )
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    if unknown := set(only) - set(numbers):
        raise UserError(f"--only: there is no case {min(unknown)!r}, only {', '.join(numbers)}.")
    console = make_console()
    done = read_done(arguments.json)
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        files = data_files(Path(folder), console)
        for _ in range(TRIES):
            for number, case in enumerate(CASES, start=1):
                if str(number) not in only or is_settled(case, done):
                    continue
                console.print(f"{number}: {case.name}", markup=False)
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    done.append(compare(case, files[case.messages], Path(own), arguments.steps))
                if arguments.json:
                    arguments.json.write_text(json.dumps([asdict(one) for one in done], indent=2))
    show(done, console, arguments.steps)
    return verdict(done, console)


def read_done(path: Path | None) -> list[Compared]:
    """What an earlier call has run; a case that is not settled by it is run again.

    Raises:
        UserError: the file says something else.
    """
    if path is None or not path.is_file():
        return []
    try:
        return [
            Compared(
                Case(**one["case"]),
                Predicted(**one["modelled"]),
                Predicted(**one["calibrated"]),
                one["seconds"],
                one["peak_bytes"],
                one["others"],
                one["after"],
            )
            for one in json.loads(path.read_text())
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"--json: {path} does not hold figures of this version of the benchmark; "
            "name another file."
        ) from None


def is_settled(case: Case, done: Sequence[Compared]) -> bool:
    """Whether it has been run while the machine kept its pace, or often enough."""
    tries = [one for one in done if one.case == case]
    return len(tries) >= TRIES or any(one.is_steady for one in tries)


def data_files(folder: Path, console: Console) -> dict[str, Path]:
    """The sample chat, and its shorter and its longer messages."""
    from discord_lora.messages.prepare import PrepareOptions, prepare
    from discord_lora.messages.training_data import read_training_data, write_line
    from discord_lora.sample import sample_chat_export

    files = {name: folder / f"{name}.jsonl" for name in ("all", "short", "long")}
    prepare(PrepareOptions((sample_chat_export(ROOT, plainly(console)),), files["all"]))
    messages = read_training_data(files["all"]).messages
    for name, wanted in (("short", True), ("long", False)):
        with files[name].open("wb") as stream:
            for message in messages:
                if (len(message.content) <= SHORT_CHARACTERS) == wanted:
                    write_line(stream, message)
    return files


def compare(case: Case, data: Path, folder: Path, steps: int) -> Compared:
    """Plan twice, run, and calibrate once more."""
    settings = {
        "training_data_path": data,
        "persona": PERSONA if case.voice == "persona" else "",
        "gradient_checkpointing": case.checkpointing,
        "max_tokens_per_microbatch": case.token_budget,
        "max_steps": steps,
        "max_validation_messages": 100,
        "learning_rate": 1e-3,
        "output_dir": folder / "adapters",
        "logs_dir": folder / "logs",
    }
    busy = Busy.now()
    modelled = in_a_process(settings, calibrate=False)
    calibrated = in_a_process(settings, calibrate=True)
    own = folder / "of-its-own.env"  # not that of whoever runs this
    own.touch()
    seconds, peak_bytes = run([*as_options(settings), "--env-file", str(own)])
    # Where nothing is known of the run, nor of what it measured.
    elsewhere = {"output_dir": folder / "after/adapters", "logs_dir": folder / "after/logs"}
    after = in_a_process({**settings, **elsewhere}, calibrate=True)
    return Compared(
        case,
        modelled,
        calibrated,
        seconds,
        peak_bytes,
        others=Busy.now().share_of_others_since(busy),
        after=after.seconds / calibrated.seconds,
    )


def in_a_process(settings: dict[str, Any], calibrate: bool) -> Predicted:
    """A plan, made where no earlier one has grown the memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(predict, settings, calibrate).result()


def predict(overrides: dict[str, Any], calibrate: bool) -> Predicted:
    from discord_lora.analysis.plan.plan_options import Asked
    from discord_lora.finetuning.forecast import forecast
    from discord_lora.settings import load_settings

    settings = load_settings(overrides, env_file=None)
    plan = forecast(settings, Asked(calibrate=calibrate), make_console(quiet=True))
    return Predicted(plan.as_set_time.total, plan.peak_bytes)


def as_options(settings: dict[str, Any]) -> list[str]:
    words = []
    for name, value in settings.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    return words


def run(options: list[str]) -> tuple[float, float]:
    """Seconds and peak bytes of training as a program of its own.

    Raises:
        UserError: it failed.
    """
    words = [str(ROOT / "training" / "train_lora.py"), "--fresh", *options]
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, cwd=ROOT)
    peak = wait(process)
    if process.returncode:
        raise UserError(f"The run ended with {process.returncode}; see its lines above.")
    return time.perf_counter() - began, peak


def wait(process: "subprocess.Popen[bytes]") -> float:
    """Until it ends; returns the most bytes that it held."""
    if sys.platform == "win32":
        looked, peak = psutil.Process(process.pid), 0
        while process.poll() is None:
            peak = max(peak, looked.memory_info().peak_wset)
            time.sleep(0.2)
        return peak
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def show(done: list[Compared], console: Console, steps: int) -> None:
    """Ratios of predicted to measured, so that 1.00 is right."""
    table = Table(title=f"whole runs of {steps} steps: predicted / measured", box=box.ASCII)
    table.add_column("run")
    ratios = ("modelled", "calibrated")
    for heading in ("seconds", *ratios, "GB", *ratios, "others", "after"):
        table.add_column(heading, justify="right")
    for one in done:
        table.add_row(
            one.case.name,
            f"{one.seconds:.0f}",
            f"{one.off_when_modelled:.2f}",
            f"{one.calibrated.seconds / one.seconds:.2f}",
            f"{one.peak_bytes / 1e9:.2f}",
            f"{one.modelled.peak_bytes / one.peak_bytes:.2f}",
            f"{one.calibrated.peak_bytes / one.peak_bytes:.2f}",
            f"{one.others:.0%}",
            f"{one.after:.2f}",
        )
    console.print(table)


def verdict(done: list[Compared], console: Console) -> int:
    """Say how near the plans came; 1 unless all did, but for one calibrated time in eight."""
    last = {one.case: one for one in done}.values()
    times = sum(abs(it.calibrated.seconds / it.seconds - 1) <= TIME_WITHIN for it in last)
    peaks = sum(abs(it.calibrated.peak_bytes / it.peak_bytes - 1) <= MEMORY_WITHIN for it in done)
    worst = max(max(it.off_when_modelled, 1 / it.off_when_modelled) for it in last)
    console.print(f"modelled: time within a factor of {worst:.2f}")
    console.print(
        f"after calibration: time within {100 * TIME_WITHIN:g} % in {times} of {len(last)}, memory "
        f"within {100 * MEMORY_WITHIN:g} % in {peaks} of {len(done)}"
    )
    if restless := len(done) - sum(one.is_steady for one in done):
        console.print(
            f"(in {restless} of {len(done)} runs the machine changed its pace by more than "
            f"{100 * PACE_WITHIN:g} %; of each case the last time counts)"
        )
    missed = peaks < len(done) or len(last) - times > len(last) // 8
    return int(missed or worst > MODELLED_WITHIN)


if __name__ == "__main__":
    run_script(main)
