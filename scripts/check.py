"""One command for every check: set up, then format, lint, types, import rules, tests.

    python scripts/check.py            everything (about ten minutes on two cores)
    python scripts/check.py --fast     without the slow tests (about three minutes)
    python scripts/check.py --fix      let the formatter and the linter repair first

Needs only a bare Python 3.11 to 3.13: it makes `.venv` and installs requirements-dev.txt there.
Every step runs even when an earlier one failed; the exit code is 1 if any did. The last line
counts the tests, and a failed step as one more failure.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from discord_lora.bootstrap import ensure_environment  # noqa: E402
from discord_lora.commands import clean_environment  # noqa: E402

PYTHON = sys.executable
RUFF = [PYTHON, "-m", "ruff"]
# Its console script is called differently on each system; this is what it calls.
IMPORT_RULES = (
    "import sys; from importlinter.cli import lint_imports_command as run; sys.exit(run())"
)
PYTEST = [PYTHON, "-m", "pytest", "--quiet"]
# A worker has torch in memory.
SIDE_BY_SIDE = ["-n", str(min(4, os.cpu_count() or 1))]
# What tests start has one thread as well, or the threads of two would wait for each other.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NOTHING_COLLECTED = 5
COUNT = re.compile(r"(\d+) (passed|failed|errors?)\b")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Result(NamedTuple):
    name: str
    passed: bool
    seconds: float
    tests_passed: int = 0
    failures: int = 0


def main() -> int:
    arguments = parse_arguments()
    ensure_environment(ROOT / "requirements-dev.txt")
    if arguments.fix:
        run_step("lint --fix", [*RUFF, "check", "--fix", "--quiet", "."])
        run_step("format", [*RUFF, "format", "--quiet", "."])

    results = [
        run_step("format", [*RUFF, "format", "--check", "--quiet", "."]),
        run_step("lint", [*RUFF, "check", "--quiet", "."]),
        run_step("types", [PYTHON, "-m", "mypy"]),
        run_step("import rules", [PYTHON, "-c", IMPORT_RULES, "--no-logo"]),
        # Each file's tests stay together, for what they share.
        run_tests("fast tests", ["-m", "not slow and not alone", *SIDE_BY_SIDE, "--dist=loadfile"]),
    ]
    if not arguments.fast:
        slow = ["-m", "slow and not alone", *SIDE_BY_SIDE, "--dist=worksteal", "--durations=5"]
        results.append(run_tests("slow tests", slow))
        # What they time has all processors, as in the programs.
        results.append(run_tests("tests alone", ["-m", "alone"], threads={}))
    return summarise(results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fast", action="store_true", help="leave the slow tests out")
    parser.add_argument("--fix", action="store_true", help="repair format and lint first")
    return parser.parse_args()


def run_step(name: str, command: list[str]) -> Result:
    """Run one tool; what it prints is shown."""
    began = announce(name)
    code = subprocess.call(command, cwd=ROOT, env=clean_environment(), stdin=subprocess.DEVNULL)
    return Result(name, code == 0, time.monotonic() - began, failures=int(code != 0))


def run_tests(name: str, selection: list[str], threads: dict[str, str] = ONE_THREAD) -> Result:
    """Run pytest, show its output as it comes, and read the counts from its last line."""
    began = announce(name)
    colour = "--color=yes" if sys.stdout.isatty() else "--color=no"
    counts = {"passed": 0, "failed": 0, "error": 0}
    with subprocess.Popen(
        [*PYTEST, colour, *selection],
        cwd=ROOT,
        env={**clean_environment(), **threads},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        last = ""
        for line in process.stdout:
            write(line)
            last = COLOUR.sub("", line).strip() or last
    for number, kind in COUNT.findall(last):
        counts[kind.rstrip("s") if kind.startswith("error") else kind] += int(number)
    passed = process.returncode in (0, NOTHING_COLLECTED)
    # A run that broke down before it could count is a failure too.
    failures = counts["failed"] + counts["error"] or int(not passed)
    return Result(name, passed, time.monotonic() - began, counts["passed"], failures)


def announce(name: str) -> float:
    write(f"\n== {name}\n")
    return time.monotonic()


def write(text: str) -> None:
    """Any character on any console: a cp1252 window shows `?` instead."""
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def summarise(results: list[Result]) -> int:
    write("\n== summary\n")
    for it in results:
        write(f"{'ok' if it.passed else 'FAILED':6}  {it.name:14} {it.seconds:6.1f} s\n")
    tests_passed = sum(it.tests_passed for it in results)
    failures = sum(it.failures for it in results)
    write(f"{tests_passed} passed, {failures} failed\n")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
