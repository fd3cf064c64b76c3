"""From a fresh clone to a trained persona in one command, on a built-in model and sample chat.

    python scripts/quickstart.py

Needs only a bare Python 3.11 to 3.13 and PyPI. It makes `.venv`, installs requirements.txt there
(on Windows with an NVIDIA card with the CUDA build of torch), fetches a small model and a public
chat, prepares the chat as you would prepare your server's export, trains a persona for a few
minutes, and shows what changed. Everything is kept: a second run reuses it, also offline.

Nothing here is for your server yet: the last lines say what to type for that.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from discord_lora.bootstrap import ensure_environment, run_as_child  # noqa: E402

if TYPE_CHECKING:
    from discord_lora.settings import Settings
from discord_lora.commands import say_plainly  # noqa: E402

ENV_FILE = Path("scripts", "quickstart.env")
PROMPTS = ("hey, what's up?", "what are you doing tonight?", "i had such a long day at work")
SEED = 7


def main() -> None:
    parse_arguments()
    ensure_environment(ROOT / "requirements.txt")

    # From here on we run inside .venv, where everything is installed.
    from discord_lora.console import run_script

    run_script(quick_start)


def quick_start() -> int:
    from discord_lora.sample import sample_chat_export, sample_model_folder
    from discord_lora.settings import load_settings

    os.chdir(ROOT)
    settings = load_settings(env_file=ENV_FILE)

    step("1/6  The sample model and the sample chat")
    sample_model_folder(ROOT, say_plainly)
    exports = sample_chat_export(ROOT, say_plainly)

    step("2/6  Exports -> training data")
    run(
        "scripts/prepare_training_data.py",
        exports.relative_to(ROOT),
        "--out",
        settings.training_data_path,
    )

    step("3/6  What is in it")
    run("scripts/analyze_training_data.py", "--env-file", ENV_FILE, "--show-sample", "1")

    step("4/6  Training: the slow part, a few minutes")
    run("training/train_lora.py", "--env-file", ENV_FILE)

    step("5/6  The same three messages, before and after")
    folder = compare_answers(settings)

    step("6/6  Yours")
    say_what_next(folder)
    return 0


def compare_answers(settings: Settings) -> Path:
    """Let the base model and the adapter answer the same prompts; returns the adapter's folder."""
    from discord_lora.adapter_folder import find_adapter, read_run_info
    from discord_lora.hardware import detect_hardware
    from discord_lora.inference.backend import Sampling
    from discord_lora.inference.dialogue import Dialogue
    from discord_lora.inference.local_backend import LocalBackend

    folder = find_adapter(settings.output_dir, persona=settings.persona)
    backend = LocalBackend.load(folder, detect_hardware(), say_plainly)
    for prompt in PROMPTS:
        say_plainly(f"\n  you: {prompt}")
        for label, use_adapter in (("before", False), ("after ", True)):
            dialogue = Dialogue(backend, Sampling.from_settings(settings), name="Ada")
            dialogue.seed, dialogue.use_adapter = SEED, use_adapter
            reply = " / ".join("".join(dialogue.say(prompt)).split("\n"))
            say_plainly(f"  {label}: {reply}")
    backend.close_now()
    losses = read_run_info(folder).losses
    before, after = losses["base_nats_per_token"], losses["trained_nats_per_token"]
    say_plainly(
        f"\n  held-out loss: {before:.3f} before, {after:.3f} after "
        f"({1 - after / before:.0%} less), in nats a token"
    )
    return folder


def say_what_next(folder: Path) -> None:
    python = (
        Path(sys.executable).relative_to(ROOT) if ROOT in Path(sys.executable).parents else "python"
    )
    say_plainly(
        f"""  The adapter is in {folder}.
  It is a small model and a stranger's chat, so that you see the whole road. For your server:

  talk to this one        {python} scripts/chat.py --adapter {folder.name}
  prepare your export     {python} scripts/prepare_training_data.py PATH_TO_YOUR_EXPORTS
  train overnight         copy .env.example to .env, then {python} training/train_lora.py"""
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return parser.parse_args()


def step(title: str) -> None:
    say_plainly(f"\n== {title}")


def run(script: str, *arguments: str | Path) -> None:
    """Run one of the project's scripts as you would; what it says is shown as it says it."""
    words = [script, *map(str, arguments)]
    say_plainly("> python " + " ".join(words))
    code = run_as_child([sys.executable, *words])
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
