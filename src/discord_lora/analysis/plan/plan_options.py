"""What can be asked of the plan of the night, as options of a script."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta
from pathlib import Path

from discord_lora.analysis.plan.cards import find_card, is_cpu, near_names
from discord_lora.console import UserError
from discord_lora.settings import Settings

MOST_HOURS = 10_000

NOT_PLANNED_WITH = {"epochs", "max_steps", "learning_rate", "logs_dir"}
"""Settings of the analyzer that a plan decides anew, or does not depend on."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user wants to know."""

    gpu: str = ""
    """Another card than the one at hand, or the processor."""
    calibrate: bool = False
    seconds_per_step: float | None = None
    """Of another trainer: the classic arithmetic."""
    ready_at: float | None = None
    """When it has to be over, in seconds since 1970: known from the start, whatever takes time."""
    hours: float | None = None
    """How long it may take from the moment that it is planned."""
    write_env: Path | None = None
    """The file that the recommended lines go into."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Settings of the command line that the plan holds for; without them in .env it would not."""
    looks_filtered: bool = False
    can_be_filtered: bool = True
    """filter_training_data.py takes the data."""

    @classmethod
    def of(cls, args: argparse.Namespace) -> "Asked":
        """Of parsed options.

        Raises:
            UserError: they contradict each other, or a figure makes no sense.
        """
        if args.seconds_per_step is not None and not 0 < args.seconds_per_step < MOST_HOURS:
            raise UserError("--seconds-per-step: must be more than 0, such as 30.")
        if args.seconds_per_step is not None and (args.ready_by or args.hours is not None):
            raise UserError(
                "--seconds-per-step is about another trainer, --ready-by and --hours about this "
                "one; give one of them."
            )
        now = datetime.now().astimezone()
        seconds = seconds_allowed(args.ready_by, args.hours, now)
        if args.gpu and find_card(args.gpu) is None and not is_cpu(args.gpu):
            names = ", ".join(near_names(args.gpu))
            raise UserError(f"--gpu: {args.gpu} is not known; there are {names}.")
        if args.gpu and args.calibrate:
            raise UserError("--calibrate times the machine at hand; leave out --gpu.")
        if args.paths and args.write_env:
            raise UserError(
                "--write-env: nothing can be trained on exports as they are; run "
                "prepare_training_data.py first, and plan without naming them."
            )
        asked = cls(
            gpu=args.gpu,
            calibrate=args.calibrate,
            seconds_per_step=args.seconds_per_step,
            ready_at=now.timestamp() + seconds if seconds and args.ready_by else None,
            hours=args.hours,
            write_env=(args.env_file or Path(".env")) if args.write_env else None,
            given={
                name.upper(): value
                for name, value in vars(args).items()
                if name in Settings.model_fields.keys() - NOT_PLANNED_WITH
            },
        )
        if asked.outright and (args.no_plan or args.no_tokens):
            option = "--no-plan" if args.no_plan else "--no-tokens"
            raise UserError(f"{option} leaves out the plan, and another option asks for it.")
        return asked

    @property
    def outright(self) -> bool:
        """True if the plan was asked for; else it is an extra that may fail."""
        numbers = (self.seconds_per_step, self.hours)
        wishes = (self.gpu, self.calibrate, self.ready_at, self.write_env)
        return any(wishes) or any(number is not None for number in numbers)

    def seconds_left(self, now: datetime) -> float | None:
        """Until it has to be over, which may be past; None if it may take as long as it takes."""
        if self.hours is not None:
            return self.hours * 3600
        return None if self.ready_at is None else self.ready_at - now.timestamp()


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the plan of the night").add_argument
    add("--no-plan", action="store_true", help="the report alone")
    add("--calibrate", action="store_true",
        help="time real micro-batches here, in 3 minutes, so that the plan is right")  # fmt: skip
    add("--gpu", default="", metavar="NAME",
        help="plan for this card instead of this machine, such as 'RTX 2080 Ti' or 'A100 80GB', "
        "or for the processor: cpu")  # fmt: skip
    add("--seconds-per-step", type=float, metavar="S",
        help="times of another trainer that needs S seconds a step")  # fmt: skip
    add("--ready-by", metavar="HH:MM", help="what ends by then")
    add("--hours", type=float, metavar="H", help="what ends within so many hours")
    add("--write-env", action="store_true",
        help="put the recommended lines into .env; the old one is kept as .env.backup")  # fmt: skip


def seconds_allowed(ready_by: str | None, hours: float | None, now: datetime) -> float | None:
    """Until the deadline; None if there is none.

    Raises:
        UserError: it is no time of day, or both are given.
    """
    if ready_by and hours is not None:
        raise UserError("--ready-by and --hours: give one of them.")
    if hours is not None:
        if not 0 < hours < MOST_HOURS:
            raise UserError("--hours: must be more than 0, such as 8 or 0.5.")
        return hours * 3600
    if not ready_by:
        return None
    try:
        wanted = time.fromisoformat(ready_by.strip().zfill(5))
    except ValueError:
        raise UserError(
            f"--ready-by: {ready_by} is no time of day; write HH:MM, such as 07:00."
        ) from None
    # As the clock on the wall will show it: in a night in which the clocks change, what lies
    # between two times of day is not their difference.
    today = datetime.combine(now.date(), wanted).timestamp()
    tomorrow = datetime.combine(now.date() + timedelta(days=1), wanted).timestamp()
    return (today if today > now.timestamp() else tomorrow) - now.timestamp()
