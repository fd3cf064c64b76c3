"""Ours beside the classic recipe and beside TRL: same messages, same model, same LoRA.

    python benchmarks/compare_training.py

Every contender trains the same messages of the same conversations once, in a process of its own.
Each round draws other conversations and another LoRA to start from, and turns the order:

  classic            transformers.Trainer, one message a sequence, batch 1 x 16, checkpointing
  trl-checkpointing  TRL's SFTTrainer, packing, about 16 messages a step
  trl-plain          the same without gradient checkpointing
  trl-best           TRL at its own best throughput: whichever rows a sweep found fastest
  ours               this project's training, 16 messages a step

Only optimizer steps are timed. Loading, tokenizing, TRL's packing (done ahead) and evaluation are
not, nor is one short pass with which each process warms up. Held-out loss is measured with one
and the same function, outside all trainers. TRL is installed into benchmarks/.venv, once.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from discord_lora.bootstrap import ensure_environment  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence

EXAMPLES = """
examples:
  python benchmarks/compare_training.py                       three rounds of everybody
  python benchmarks/compare_training.py --only ours,trl --rounds 1
  python benchmarks/compare_training.py --data exports/ --persona calm.heron --json out.json
  python benchmarks/compare_training.py --profile             where ours spends its time
  python benchmarks/compare_training.py --rows 1024           packed rows against the GEMM rate
  python benchmarks/compare_training.py --sweep-trl           how TRL's best rows were found
  python benchmarks/compare_training.py --device cuda --base-model mistralai/Mistral-7B-v0.3
                                    on a card; adds a line to benchmarks/RESULTS.jsonl
"""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="PATH",
        help="exports or a training_data.jsonl (default: the sample chat, so that anyone can "
        "repeat the figures)")  # fmt: skip
    add("--messages", type=int, default=160, metavar="N", help="messages trained (default: 160)")
    add("--held-out", type=int, default=80, metavar="N",
        help="messages for the held-out loss (default: 80)")  # fmt: skip
    add("--rounds", type=int, default=3, metavar="N", help="(default: 3)")
    add("--only", default="", metavar="NAMES", help="contenders, such as ours,trl or trl-best")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    add("--base-model", default="sample", metavar="MODEL", help="(default: the sample model)")
    add("--persona", default="", metavar="MEMBER",
        help="learn one member instead of everybody")  # fmt: skip
    add("--learning-rate", type=float, metavar="RATE",
        help="(default: 1e-3 for the sample model, else 2e-4)")  # fmt: skip
    add("--set", action="append", default=[], metavar="NAME=VALUE",
        help="any other setting of the project, for everybody; may be given again")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write every figure of every round")
    add("--record", type=Path, nargs="?", const=ROOT / "benchmarks" / "RESULTS.jsonl",
        metavar="FILE", help="append a line with machine, versions and figures (default file: "
        "benchmarks/RESULTS.jsonl; always with --device cuda)")  # fmt: skip
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--profile", action="store_true", help="where ours spends its time")
    what.add_argument("--rows", type=int, metavar="TOKENS", help="rate of full rows through ours")
    what.add_argument("--sweep-trl", action="store_true", help="time TRL with rows of many shapes")
    parsed = parser.parse_args(arguments)
    if parsed.device == "cuda" and parsed.record is None:
        parsed.record = ROOT / "benchmarks" / "RESULTS.jsonl"
    return parsed


def main() -> None:
    arguments = parse_arguments()
    ensure_environment(ROOT / "benchmarks" / "requirements.txt")

    # From here on we run inside benchmarks/.venv, where everything is installed.
    from comparison.modes import run
    from discord_lora.console import run_script

    run_script(lambda: run(arguments))


if __name__ == "__main__":
    main()
