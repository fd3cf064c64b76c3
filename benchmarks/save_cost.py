"""What saving costs: the share of the training time that checkpoints take at SAVE_EVERY_STEPS.

    python benchmarks/save_cost.py

Trains the sample model on the sample chat with the settings of a real run, and saves as a run does:
weights, optimizer, scheduler and progress written, flushed to the disk, hashed and renamed. The
folder is below OUTPUT_DIR, so that it is that disk, and is deleted afterwards.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from rich.console import Console  # noqa: E402

from discord_lora.console import make_console, make_progress, plainly, run_script  # noqa: E402
from discord_lora.settings import Settings, load_settings  # noqa: E402

WARM_UP_STEPS = 2
"""First steps fill caches and make thread pools; they are not counted."""


def main() -> int | None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="(default: 100)")
    steps = parser.parse_args().steps
    console = make_console()
    settings = load_settings({"max_steps": steps, "learning_rate": 1e-3}, env_file=None)
    settings.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="save-cost-", dir=settings.output_dir) as folder:
        training, saves, size = measure(settings, Path(folder), console)
    between = training / (steps - WARM_UP_STEPS) * settings.save_every_steps
    save = sum(saves) / len(saves)
    console.print(
        f"{steps} steps, {training:.0f} s of training without saves; {len(saves)} checkpoints of "
        f"{size / 1e6:.0f} MB, {save:.2f} s each ({min(saves):.2f} to {max(saves):.2f})\n"
        f"with SAVE_EVERY_STEPS={settings.save_every_steps}: {save:.2f} s every {between:.0f} s of "
        f"training = {save / between:.2%}"
    )
    return None


def measure(settings: Settings, folder: Path, console: Console) -> tuple[float, list[float], float]:
    """Seconds of the steps after the first ones, seconds of each save, bytes of a checkpoint."""
    from discord_lora.finetuning.checkpoints import save_checkpoint
    from discord_lora.finetuning.loop import Events, fit
    from discord_lora.finetuning.training_state import snapshot

    state = sample_state(settings, folder, console)
    moments: list[float] = []
    saves: list[float] = []
    written = Path()
    with make_progress(console) as progress:
        bar = progress.add_task("training", total=settings.max_steps)

        def stepped(*_: object) -> None:
            moments.append(time.perf_counter())
            progress.advance(bar)

        def save(step: int) -> None:
            nonlocal written
            began = time.perf_counter()
            written = save_checkpoint(folder / "checkpoints", snapshot(state, step, {}), keep=2)
            saves.append(time.perf_counter() - began)

        fit(state, Events(stepped=stepped, save=save, save_every_steps=settings.save_every_steps))
    # The last save comes after the last step.
    training = moments[-1] - moments[WARM_UP_STEPS - 1] - sum(saves[:-1])
    return training, saves, sum(file.stat().st_size for file in written.iterdir())


def sample_state(settings: Settings, folder: Path, console: Console):
    """The sample model and chat, ready to train."""
    from discord_lora.base_model import load_tokenizer
    from discord_lora.conversations.dataset_cache import open_dataset
    from discord_lora.finetuning.forecast import loaded_state, plan_as_set
    from discord_lora.hardware import detect_hardware
    from discord_lora.messages.prepare import PrepareOptions, prepare
    from discord_lora.model_location import locate_base_model
    from discord_lora.sample import sample_chat_export

    say = plainly(console)
    data = folder / "chat.jsonl"
    prepare(PrepareOptions((sample_chat_export(ROOT, say),), data))
    settings = settings.model_copy(update={"training_data_path": data})
    location = locate_base_model(settings.base_model, say)
    dataset = open_dataset(settings, lambda: load_tokenizer(location), say)
    plan = plan_as_set(settings, dataset)
    return loaded_state(settings, dataset, plan, location, detect_hardware(), say)


if __name__ == "__main__":
    run_script(main)
