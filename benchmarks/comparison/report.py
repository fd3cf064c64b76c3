"""Medians, ratios and the table of all rounds; nothing here measures."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from rich import box
from rich.console import Console
from rich.table import Table

from comparison.rounds import Round
from discord_lora.console import UserError

FLOPS_PER_PARAMETER = 4
"""A token's FLOPs per weight of the model: 2 forward and 2 for the gradient that passes back
through a frozen weight. The same rule for all: recomputation, LoRA and attention count nothing."""

Measure = Callable[[Round, str], float]


def messages_rate(one: Round, name: str) -> float:
    return float(one.results[name]["messages_per_second"])


def tokens_rate(one: Round, name: str) -> float:
    return float(one.results[name]["tokens_per_second"])


def gemm_fraction(one: Round, name: str) -> float:
    """Share of the machine's matrix-product rate that the counted FLOPs reach."""
    return tokens_rate(one, name) * FLOPS_PER_PARAMETER * one.parameters / one.flops_per_second


def peak_gigabytes(one: Round, name: str) -> float:
    return float(one.results[name]["peak_bytes"]) / 1e9


def held_out(one: Round, name: str) -> float:
    return float(one.results[name]["held_out_nats"])


def busy_cores(one: Round, name: str) -> float:
    return float(one.results[name]["busy_cores"])


def median_of(rounds: Sequence[Round], measure: Measure, name: str) -> float:
    return median(measure(one, name) for one in rounds)


def ratios(rounds: Sequence[Round], measure: Measure, name: str, other: str) -> list[float]:
    """`name` over `other`, within each round: what slows a whole round cancels out."""
    return [measure(one, name) / measure(one, other) for one in rounds]


def check_same_messages(one: Round) -> None:
    """Raise UserError unless everybody trained on the same messages."""
    seen = {
        (str(result["same_messages"]), int(result["messages"])) for result in one.results.values()
    }
    if len(seen) > 1:
        raise UserError(
            f"The contenders trained on different messages ({seen}): the figures do not compare. "
            "This is a fault of the benchmark; please report it."
        )


def print_report(console: Console, rounds: Sequence[Round]) -> None:
    """Both tables, in characters that every console has."""
    names = list(dict.fromkeys(name for one in rounds for name in sorted(one.results)))
    names.sort(key=lambda name: median_of(rounds, messages_rate, name))
    console.print(contender_table(rounds, names))
    if "ours" in names and len(names) > 1:
        console.print(ratio_table(rounds, [name for name in names if name != "ours"]))
    for name in names:
        console.print(f"{name}: {rounds[-1].results[name]['shape']}", markup=False)
    gflops = median(one.flops_per_second for one in rounds) / 1e9
    machine = rounds[0].machine
    console.print(
        f"{machine['device']}, {machine['precision']}: {gflops:,.0f} GFLOP/s in matrix products; "
        f"{rounds[0].parameters:,} parameters x {FLOPS_PER_PARAMETER} FLOPs a token. GEMM: the "
        "share of that rate; GB: peak memory; loss: held-out, nats a token; a step: messages in "
        "one optimizer step; cores: kept busy on average.",
        markup=False,
    )


def contender_table(rounds: Sequence[Round], names: Sequence[str]) -> Table:
    title = f"medians of {len(rounds)} rounds" if len(rounds) > 1 else "one round"
    table = Table(title=title, box=box.ASCII)
    table.add_column("contender")
    for heading in ("msgs/s", "tok/s", "GEMM", "GB", "loss", "a step", "cores"):
        table.add_column(heading, justify="right")
    for name in names:
        last = rounds[-1].results[name]
        table.add_row(
            name,
            f"{median_of(rounds, messages_rate, name):.2f}",
            f"{median_of(rounds, tokens_rate, name):.0f}",
            f"{median_of(rounds, gemm_fraction, name):.0%}",
            f"{median_of(rounds, peak_gigabytes, name):.2f}",
            f"{median_of(rounds, held_out, name):.4f}",
            f"{last['messages'] / last['steps']:.1f}",
            f"{median_of(rounds, busy_cores, name):.2f}",
        )
    return table


def ratio_table(rounds: Sequence[Round], others: Sequence[str]) -> Table:
    table = Table(title="ours / the other, within each round", box=box.ASCII)
    table.add_column("the other")
    measures: dict[str, Measure] = {
        "messages/s": messages_rate,
        "peak memory": peak_gigabytes,
        "held-out loss": held_out,
    }
    for heading in measures:
        table.add_column(heading, justify="right")
    for other in others:
        cells = [spread(ratios(rounds, measure, "ours", other)) for measure in measures.values()]
        table.add_row(other, *cells)
    return table


def spread(values: Sequence[float]) -> str:
    """The median, and from where to where the rounds lie if they differ."""
    lowest, middle, highest = (f"{f(values):.3f}" for f in (min, median, max))
    return middle if lowest == highest else f"{middle} ({lowest}-{highest})"


def as_record(rounds: Sequence[Round], asked: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, with the machine and the versions."""
    names = list(rounds[0].results)
    figures: dict[str, Measure] = {
        "messages_per_second": messages_rate,
        "tokens_per_second": tokens_rate,
        "gemm_fraction": gemm_fraction,
        "peak_gigabytes": peak_gigabytes,
        "held_out_nats": held_out,
        "busy_cores": busy_cores,
    }
    others = [name for name in names if name != "ours"] if "ours" in names else []
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": rounds[0].machine,
        "asked": asked,
        "medians": {
            name: {label: median_of(rounds, measure, name) for label, measure in figures.items()}
            for name in names
        },
        "ours_to_others": {
            other: {
                label: ratios(rounds, measure, "ours", other) for label, measure in figures.items()
            }
            for other in others
        },
        "rounds": [asdict(one) for one in rounds],
    }


def append_record(path: Path, record: dict[str, Any]) -> None:
    """One more line of a JSONL file."""
    with path.open("ab") as stream:
        stream.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
