"""How long the check before the start takes on the sample model: seconds that its user waits.

    python benchmarks/preflight_speed.py

`train_lora.py --check` on the sample chat, as a program of its own: at first with nothing cached
but the model, then as often as asked for with the tokenized data there. The slowest has to stay
under 20 s.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from discord_lora.console import UserError, make_console, plainly, run_script  # noqa: E402

MOST_SECONDS = 20.0


def main() -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=3, metavar="N", help="(default: 3)")
    times = parser.parse_args().times
    say = plainly(make_console())
    with tempfile.TemporaryDirectory(prefix="discord-lora-") as folder:
        words = prepare_sample(Path(folder))
        first, *others = (seconds_of_check(words) for _ in range(times + 1))
    say(f"first {first:.1f} s; then {', '.join(f'{seconds:.1f}' for seconds in others)} s")
    return int(max(first, *others) >= MOST_SECONDS)


def prepare_sample(folder: Path) -> list[str]:
    """The sample's model and chat; the command that checks a training on them."""
    from discord_lora.messages.prepare import PrepareOptions, prepare
    from discord_lora.model_location import locate_base_model
    from discord_lora.sample import SAMPLE_MODEL_NAME, sample_chat_export

    say = plainly(make_console())
    locate_base_model(SAMPLE_MODEL_NAME, say)
    prepare(PrepareOptions((sample_chat_export(ROOT, say),), folder / "chat.jsonl"))
    settings = folder / "settings.env"
    settings.write_text("", encoding="utf-8")
    options = {
        "env-file": settings,
        "training-data-path": folder / "chat.jsonl",
        "output-dir": folder / "adapters",
        "logs-dir": folder / "logs",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return [sys.executable, "training/train_lora.py", "--check", *words]


def seconds_of_check(words: list[str]) -> float:
    """Raises UserError: it found something amiss."""
    began = time.perf_counter()
    answer = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise UserError(f"The check did not end well:\n{answer.stdout}{answer.stderr}")
    return time.perf_counter() - began


if __name__ == "__main__":
    run_script(main)
