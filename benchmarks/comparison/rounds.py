"""Rounds: every contender once, each in a process of its own, the order turned each time."""

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from comparison.job import Job, write_json
from discord_lora.commands import run_logged
from discord_lora.console import EXIT_USER_ERROR, UserError

Say = Callable[[str], None]

BENCHMARKS = Path(__file__).resolve().parent.parent
LOG = BENCHMARKS.parent / "logs" / "comparison.log"
CONTENDERS = ("classic", "trl-checkpointing", "trl-plain", "trl-best", "ours")
SECONDS_BETWEEN_SIGNS = 60.0


@dataclass(slots=True)
class Round:
    """What one round measured; the results by contender, in the order in which they ran."""

    flops_per_second: float
    """The better of the machine's matrix-product rates before and after."""
    parameters: int
    machine: dict[str, Any]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)


def pick(only: str) -> list[str]:
    """Contenders of a comma-separated list; `trl` means all of TRL's. Empty: everyone.

    Raises:
        UserError: nobody is called so.
    """
    words = [word.strip() for word in only.split(",") if word.strip()]
    unknown = [word for word in words if not any(_is_meant(word, name) for name in CONTENDERS)]
    if unknown:
        names = ", ".join(CONTENDERS)
        raise UserError(f"--only: nobody is called {unknown[0]}; there are {names} and trl.")
    return [name for name in CONTENDERS if not words or any(_is_meant(w, name) for w in words)]


def _is_meant(word: str, name: str) -> bool:
    return name == word or name.startswith(word + "-")


def order_of(contenders: Sequence[str], round_number: int) -> list[str]:
    """There and back: who ran first in one round runs last in the next, as machines warm up."""
    return list(contenders) if round_number % 2 == 0 else list(reversed(contenders))


def run_round(job: Job, contenders: Sequence[str], say: Say) -> Round:
    """One round: the machine's own rate, every contender, the machine's rate again."""
    before = run_job(replace(job, task="machine"), say)
    done = Round(before["flops_per_second"], before["parameters"], before["machine"])
    for name in contenders:
        result = run_job(replace(job, task=name), say)
        done.results[name] = result
        say(
            f"  {name}: {result['messages']:,} messages in {result['seconds']:.0f} s, "
            f"{result['messages_per_second']:.2f} messages/s"
        )
    after = run_job(replace(job, task="machine"), say)
    done.flops_per_second = max(done.flops_per_second, after["flops_per_second"])
    return done


def run_job(job: Job, say: Say) -> dict[str, Any]:
    """Run a job in a fresh process and read its answer.

    Raises:
        UserError: the process ended without one; its last lines are shown.
    """
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        job_path, result_path = Path(folder, "job.json"), Path(folder, "result.json")
        write_json(job_path, asdict(job))
        command = [sys.executable, "-m", "comparison.run_one", str(job_path), str(result_path)]
        code, lines = run_logged(
            command,
            LOG,
            say,
            job.task,
            folder=BENCHMARKS,
            heartbeat_seconds=SECONDS_BETWEEN_SIGNS,
        )
        if code == EXIT_USER_ERROR:
            raise UserError(*(line.removeprefix("error: ") for line in lines[-1:]))
        if code or not result_path.is_file():
            shown = "\n".join(f"    {line}" for line in lines[-12:])
            raise UserError(f"{job.task} failed (all of it: {LOG}); its last lines were\n{shown}")
        answer: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
    return answer
