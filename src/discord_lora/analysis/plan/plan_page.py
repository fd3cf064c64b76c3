"""The plan of the night on a terminal: memory, choices, one recommendation, what to put in .env."""

from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from discord_lora.analysis.plan.deadline import Deadline
from discord_lora.analysis.plan.memory import RESERVE_BYTES
from discord_lora.analysis.plan.night import NightPlan, RunTime
from discord_lora.analysis.plan.strategies import ONE_EPOCH
from discord_lora.console import duration
from discord_lora.env_file import env_line
from discord_lora.settings import Settings
from discord_lora.typed_command import script_command

WORDS = {
    "weights": "model, linear layers",
    "embedding": "model, embedding and head",
    "adapter": "adapter, gradients, optimizer",
    "activations": "activations of the largest micro-batch",
    "head": "logits",
    "workspace": "layers unpacked at work",
    "context": "CUDA, or the process itself",
}


def show_plan(
    plan: NightPlan,
    settings: Settings,
    console: Console,
    *,
    classic: float = 0,
    can_be_filtered: bool = True,
) -> None:
    """Everything but the deadline and the lines for .env.

    Args:
        plan: the night.
        settings: of the run.
        console: where it is shown.
        classic: seconds a step that the user gave.
        can_be_filtered: the data is a file that filter_training_data.py takes.
    """
    show_memory(plan, console)
    show_arithmetic(plan, settings, console, classic)
    console.print(choice_table(plan))
    if not classic:
        show_how_to_choose(plan, settings, console, can_be_filtered)
    recommendation = plan.recommendation
    console.print(f"Recommended: {recommendation.strategy.name}. {recommendation.reason}")
    if recommendation.warning:
        console.print(recommendation.warning)
    if not classic:
        taken = plan.as_set_time
        console.print(
            f"As it is set now: {plan.as_set.steps:,.0f} steps, {duration(taken.low)} to "
            f"{duration(taken.high)}."
        )
    if plan.is_to_be_fetched:
        shape = plan.fit.shape
        console.print(
            f"{shape.name} is not on this computer yet. Fetching it, about "
            f"{2 * shape.weights / 1e9:.1f} GB in 16 bit, comes on top of these times; "
            "--calibrate does it now.",
            markup=False,
        )
    if plan.unfinished:
        console.print(plan.unfinished, markup=False)


def show_memory(plan: NightPlan, console: Console) -> None:
    made = plan.fit
    title = Text(f"memory for {made.shape.name} on {made.machine.name}")
    table = Table(title=title, box=box.ASCII)
    table.add_column("what")
    table.add_column("GB", justify="right")
    for part in fields(made.use):
        table.add_row(WORDS[part.name], f"{getattr(made.use, part.name) / 1e9:.2f}")
    table.add_row("together (modelled)", f"{made.use.total / 1e9:.2f}")
    if plan.peak_source != "modelled":
        table.add_row(f"together ({plan.peak_source})", f"{plan.peak_bytes / 1e9:.2f}")
    table.add_row("kept in reserve", f"{RESERVE_BYTES[made.machine.kind] / 1e9:.2f}")
    # Cards of one name come with different memory, and another one may be meant.
    there = "memory of the card" if made.machine.kind == "cuda" else "memory that is free now"
    table.add_row(there, f"{made.machine.memory_bytes / 1e9:.2f}")
    table.add_row("stays free" if plan.fits else "missing", f"{abs(plan.left) / 1e9:.2f}")
    console.print(table)
    console.print(str(made.plan)[0].upper() + str(made.plan)[1:] + ".", markup=False)
    if not plan.fits:
        console.print(
            "This may not fit. Choose a smaller BASE_MODEL, a shorter MAX_SEQ_LENGTH, or leave "
            "GRADIENT_CHECKPOINTING and MAX_TOKENS_PER_MICROBATCH on auto.",
        )


def show_arithmetic(plan: NightPlan, settings: Settings, console: Console, classic: float) -> None:
    once = plan.choice(ONE_EPOCH)
    line = (
        f"{plan.messages:,} messages / ({settings.batch_size} x "
        f"{settings.gradient_accumulation_steps}) = {once.strategy.steps:,} steps an epoch; "
    )
    if classic:
        line += (
            f"x {classic:g} s = {once.low / 3600:.1f} h, and about "
            f"{(once.high - once.low) / 3600:.1f} h for checkpoints and validation"
        )
    else:
        taken = plan.workday.run_time(plan.prices, once.strategy.steps)
        line += (
            f"{parts_of(taken)} = {duration(taken.total)} "
            f"({taken.label}: within a factor of {taken.band:g})"
        )
    console.print(line, markup=False)


def parts_of(taken: RunTime) -> str:
    """`start-up 21 s + training 21 min + ...`, without what takes no time."""
    parts = {
        "start-up": taken.start_up,
        "training": taken.training,
        "held-out loss": taken.validation,
        "checkpoints": taken.saving,
        "sample answers": taken.answers,
    }
    return " + ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items() if seconds)


def choice_table(plan: NightPlan) -> Table:
    table = Table(title="what to do with the night", box=box.ASCII)
    table.add_column("strategy")
    for heading in ("messages", "steps", "from", "to", "reciting"):
        table.add_column(heading, justify="right")
    for choice in plan.choices:
        strategy = choice.strategy
        mark = "> " if strategy == plan.recommendation.strategy else ""
        table.add_row(
            mark + strategy.name,
            f"{strategy.messages:,}",
            f"{strategy.steps:,}",
            duration(choice.low),
            duration(choice.high),
            strategy.risk,
        )
    return table


def show_how_to_choose(
    plan: NightPlan, settings: Settings, console: Console, can_be_filtered: bool
) -> None:
    """What makes the rows of fewer messages true, if there are any."""
    chosen = [choice.strategy for choice in plan.choices if choice.strategy.chosen]
    if not chosen:
        return
    console.print(
        "Fewer messages are counted as average ones, and take longer: what they answer is read "
        "with them. Some of them will be held out."
    )
    if not can_be_filtered:
        return
    path = settings.training_data_path
    whose = ("--authors", settings.persona) if settings.persona else ()
    console.print("To choose them, and to plan anew on the filtered file:")
    for strategy in chosen:
        words = ("scripts/filter_training_data.py", path, *strategy.chosen, *whose)
        console.print(f"  {script_command(*words)}", markup=False, soft_wrap=True)


def show_deadline(
    deadline: Deadline | None, console: Console, now: datetime, *, can_calibrate: bool
) -> None:
    """What ends in time, and when. `can_calibrate`: it is planned for the machine at hand."""
    if deadline is None:
        console.print("There is no time for a single step until then; allow more.")
        return
    taken = deadline.time
    begun = now.timestamp()
    ends, latest = (datetime.fromtimestamp(begun + s) for s in (taken.total, taken.high))
    if deadline.is_whole:
        console.print(f"There is time for all of it: {deadline.strategy.name}.")
    else:
        console.print(
            f"There is time for {deadline.strategy.steps:,} steps "
            f"({deadline.strategy.epochs:.2f} epochs); the learning rate falls to the end of them."
        )
    days = (latest.date() - now.date()).days
    clock = f"{'' if not days else '%a ' if days < 7 else '%Y-%m-%d '}%H:%M:%S"
    console.print(
        f"Started now it ends at {ends:{clock}} ({duration(taken.total)}), at the latest about "
        f"{latest:{clock}} ({taken.label})."
    )
    if taken.high > deadline.allowed_seconds:
        remark = "That would be too late"
    elif taken.unmeasured:
        remark = "Planned for the latest end, not for the likeliest"
    else:
        return
    console.print(f"{remark}{': --calibrate narrows it down' if can_calibrate else ''}.")


def show_lines(lines: Mapping[str, str], console: Console) -> None:
    """What belongs into `.env`, as it can be pasted there."""
    console.print("In .env:")
    for key, value in lines.items():
        console.print(env_line(key, value), markup=False, soft_wrap=True)
