"""Modelled memory and time of one epoch, card by card: the table of HARDWARE_OPTIMIZATION.md.

    python benchmarks/hardware_table.py

Nothing is measured: the formulas and their sources are in src/discord_lora/analysis/.
To measure on your own card: python benchmarks/compare_training.py --device cuda
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from discord_lora.analysis.plan.cards import CARDS, Card
from discord_lora.analysis.plan.estimates import Fit, Workload, epoch_of
from discord_lora.analysis.plan.model_shapes import MODELS

HEADINGS = (
    "card", "GB", "generation", "model", "checkpointed layers", "tokens a micro-batch",
    "peak GB", "hours an epoch",
)  # fmt: skip
EXAMPLES = """
examples:
  python benchmarks/hardware_table.py                          the largest model for each card
  python benchmarks/hardware_table.py --all                    every model that fits
  python benchmarks/hardware_table.py --tokens-per-message 32  as analyze_training_data.py counts
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--all", action="store_true", help="every model that fits, not the largest")
    parser.add_argument("--messages", type=int, default=63_000, help="(default: 63000)")
    parser.add_argument(
        "--tokens-per-message", type=float, default=40.0, help="context included (default: 40)"
    )
    arguments = parser.parse_args()
    work = Workload(messages=arguments.messages, tokens_per_message=arguments.tokens_per_message)
    print_row(HEADINGS)
    print_row(["---"] * len(HEADINGS))
    for card in CARDS:
        estimates = [epoch_of(model, card, work) for model in MODELS[1:]]
        fitting = [(made, seconds) for made, seconds in estimates if made.fits]
        for made, seconds in fitting if arguments.all else fitting[-1:]:
            print_row(row(card, made, seconds))


def row(card: Card, made: Fit, seconds: float) -> list[str]:
    return [
        card.name,
        f"{card.memory_gb:g}",
        f"{card.generation}, {card.dtype}",
        made.shape.name,
        f"{made.plan.checkpointed} of {made.plan.layers}",
        f"{made.plan.token_budget:,}",
        f"{made.use.total / 1e9:.1f}",
        f"{seconds / 3600:.1f}",
    ]


def print_row(cells: "list[str] | tuple[str, ...]") -> None:
    print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
