"""What `--check` prints: a label and a text a row, in words that an old Windows console shows."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console
from rich.table import Table
from rich.text import Text

from discord_lora.analysis.plan.disk import Room
from discord_lora.analysis.plan.night import RunTime
from discord_lora.analysis.plan.plan_page import parts_of
from discord_lora.console import duration
from discord_lora.hardware import Hardware

LABEL_WIDTH = 11

Row = tuple[str, str]


def show(console: Console, label: str, text: str) -> None:
    """A row. Its text is wrapped in its column where somebody watches, and nowhere else."""
    if not console.is_terminal:
        console.print(f"{label:<{LABEL_WIDTH}} {text}", markup=False)
        return
    table = Table.grid(padding=(0, 1))
    table.add_column(width=LABEL_WIDTH, no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(Text(label), Text(text))
    console.print(table)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that are free, and all of them."""

    free: float
    total: float

    def __str__(self) -> str:
        return f"{self.free / 1e9:.1f} of {self.total / 1e9:.1f} GB"


def machine_rows(
    hardware: Hardware, driver: str, vram: Memory, ram: Memory, *, on_windows: bool
) -> list[Row]:
    """Card, number format and memory."""
    if not hardware.is_cuda:
        return [
            ("machine", f"{hardware.name}, no CUDA card that torch can use"),
            ("numbers", hardware.why_dtype),
            ("memory", f"{ram} RAM free"),
        ]
    capability = ".".join(map(str, hardware.capability or ()))
    rows = [
        (
            "card",
            f"{hardware.name}, driver {driver or 'unknown'}, compute capability {capability}",
        ),
        ("numbers", hardware.why_dtype),
        ("memory", f"{vram} free on the card; {ram} RAM free"),
    ]
    if on_windows:
        rows.append(
            (
                "",
                "torch keeps to what is free on the card now: the driver would move the rest into "
                'RAM ("Sysmem Fallback") and the night would take many times as long',
            )
        )
    return rows


def disk_text(room: Room) -> str:
    """`412.0 GB free; ...`."""
    there = f", {size(room.there_bytes)} of it there" if room.there_bytes else ""
    return (
        f"{size(room.free_bytes)} free; wanted are up to {room.checkpoints} checkpoints of "
        f"{size(room.checkpoint_bytes)} and the adapter of {size(room.adapter_bytes)}{there}"
    )


def disk_problem(room: Room, folder: object) -> str | None:
    """Why a run would end on a full disk."""
    if room.is_enough:
        return None
    return (
        f"OUTPUT_DIR: the disk of {folder} has {size(room.free_bytes)} free, and "
        f"{room.checkpoints} checkpoints of {size(room.checkpoint_bytes)} and the adapter need "
        f"{size(room.needed_bytes)}; make room, lower SAVE_TOTAL_LIMIT or LORA_R, or set "
        "OUTPUT_DIR on another disk."
    )


def time_text(taken: RunTime, steps: int, now: datetime) -> str:
    """How long so many steps take if the program starts now, and when it ends."""
    return (
        f"{steps:,} steps in {duration(taken.total)} ({taken.label}: {duration(taken.low)} to "
        f"{duration(taken.high)}); started now it ends about {clock(now, taken.total)}"
    )


def end_sentence(taken: RunTime, now: datetime) -> str:
    """The same when the program has started up already."""
    left = taken.total - taken.start_up
    latest = taken.high - taken.start_up
    return (
        f"ends about {clock(now, left)}, at the latest about {clock(now, latest)} "
        f"({taken.label}): {parts_of(taken)}"
    )


def clock(now: datetime, seconds: float) -> str:
    """The time of day so many seconds from now, with the day if it is not today's.

    As the clock on the wall will show it, also in nights in which the clocks change.
    """
    then = datetime.fromtimestamp(now.timestamp() + seconds)
    if then.date() == now.date():
        return f"{then:%H:%M}"
    if then.date() - now.date() < timedelta(days=7):
        return f"{then:%a %H:%M}"
    return f"{then:%Y-%m-%d %H:%M}"


def size(number: float) -> str:
    """`59 MB`, `1.2 GB`."""
    if number < 1e6:
        return f"{number / 1e3:.0f} kB"
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.1f} GB"
