"""Modelled memory and time of one epoch, card by card: the table of HARDWARE_OPTIMIZATION.md.

    python benchmarks/hardware_table.py

Nothing is measured: the formulas and their sources are in src/discord_lora/analysis/.
To measure on your own card: python benchmarks/compare_training.py --device cuda
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from discord_lora.analysis.plan.cards import CARDS, Card
from discord_lora.analysis.plan.estimates import Fit, Machine, fit_into, time_model_of
from discord_lora.analysis.plan.model_shapes import MODELS, ModelShape
from discord_lora.analysis.plan.time_model import Work

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


@dataclass(frozen=True, slots=True)
class Workload:
    """What is trained when there is no data yet; the defaults are the classic night."""

    messages: int = 63_000
    messages_per_step: int = 16
    tokens_per_message: float = 40.0
    """Names and repeated context included."""
    trained_share: float = 0.65
    """Of the tokens."""
    example_tokens: int = 300
    longest: int = 1024

    @property
    def step_tokens(self) -> list[int]:
        """A typical spread of steps around the mean."""
        mean = self.messages_per_step * self.tokens_per_message
        return [round(mean * factor) for factor in (0.6, 0.8, 1.0, 1.2, 1.8)]

    def work(self, token_budget: int) -> Work:
        """Of one epoch, in micro-batches of up to so many tokens."""
        steps = self.messages / self.messages_per_step
        passes = sum(-(-tokens // token_budget) for tokens in self.step_tokens)
        tokens = self.messages * self.tokens_per_message
        return Work(
            steps=steps,
            micro_batches=steps * passes / len(self.step_tokens),
            tokens=tokens,
            squared_tokens=tokens * self.example_tokens,
            targets=tokens * self.trained_share,
        )


def epoch_of(
    shape: ModelShape, card: Card, workload: Workload, lora_r: int = 16
) -> tuple[Fit, float]:
    """How the model fits a card, and the seconds of one epoch on it."""
    made = fit_into(
        shape, Machine.of_card(card), workload.step_tokens, workload.longest, lora_r=lora_r
    )
    prices = time_model_of(
        shape, made.machine, lora_r=lora_r, checkpointed_share=made.plan.checkpointed_share
    )
    return made, prices.seconds(workload.work(made.plan.token_budget))


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
