"""What saving costs: the share of the training time that it takes at SAVE_EVERY_STEPS.

    python benchmarks/save_cost.py

Trains the sample model on the sample chat with the settings of a real run, and saves as a run does:
weights, optimizer, scheduler and progress written, flushed to the disk, hashed and renamed. What
comes with each checkpoint, sample answers and the report, is timed apart. The folder is below
OUTPUT_DIR, so that it is that disk, and is deleted afterwards.

Exits with 1 where the checkpoint with the report costs 2 % or more. (The answers are no saving:
SAMPLE_ANSWERS=0 leaves them out.)
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

from rich.console import Console  # noqa: E402

from discord_lora.console import make_console, make_progress, plainly, run_script  # noqa: E402
from discord_lora.settings import Settings, load_settings  # noqa: E402

MOST_COST = 0.02

WARM_UP_STEPS = 2
"""First steps fill caches and make thread pools; they are not counted."""


@dataclass
class Cost:
    """Seconds, each time."""

    training: float = 0.0
    """Of all steps after the first ones together."""
    checkpoints: list[float] = field(default_factory=list)
    answers: list[float] = field(default_factory=list)
    reports: list[float] = field(default_factory=list)
    size: int = 0
    """Of a checkpoint, in bytes."""

    @property
    def together(self) -> list[float]:
        return list(map(sum, zip(self.checkpoints, self.answers, self.reports, strict=True)))


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
        cost = measure(settings, Path(folder), console)
    between = cost.training / (steps - WARM_UP_STEPS) * settings.save_every_steps
    console.print(
        f"{steps} steps, {cost.training:.0f} s of training without saves; {len(cost.checkpoints)} "
        f"checkpoints of {cost.size / 1e6:.0f} MB\n"
        f"with SAVE_EVERY_STEPS={settings.save_every_steps}, every {between:.0f} s of training:"
    )
    parts = {
        "checkpoint": cost.checkpoints,
        f"{settings.sample_answers} sample answers": cost.answers,
        "report": cost.reports,
        "together": cost.together,
    }
    for name, spent in parts.items():
        mean = sum(spent) / len(spent)
        console.print(
            f"  {name:<18}{mean:6.2f} s ({min(spent):.2f} to {max(spent):.2f}) = "
            f"{mean / between:.2%}"
        )
    saving = sum(cost.checkpoints) + sum(cost.reports)
    return int(saving / len(cost.checkpoints) / between >= MOST_COST)


@contextmanager
def timed(spent: list[float]) -> Iterator[None]:
    began = time.perf_counter()
    yield
    spent.append(time.perf_counter() - began)


def measure(settings: Settings, folder: Path, console: Console) -> Cost:
    """Train, and save with all that a run does at a checkpoint."""
    from discord_lora.analysis.morning.history import append_event
    from discord_lora.finetuning.checkpoints import save_checkpoint
    from discord_lora.finetuning.for_the_morning import note_answers, write_report_or_say
    from discord_lora.finetuning.loop import Events, StepResult, fit
    from discord_lora.finetuning.training_state import snapshot

    state, answering = sample_state(settings, folder, console)
    logs, say = folder / "logs", plainly(console)
    logs.mkdir()
    event = partial(append_event, logs)
    moments: list[float] = []
    cost = Cost()
    with make_progress(console) as progress:
        bar = progress.add_task("training", total=settings.max_steps)

        def stepped(result: StepResult) -> None:
            moments.append(time.perf_counter())
            progress.advance(bar)
            if result.step % settings.log_every_steps == 0:
                rate = result.learning_rate
                event("step", step=result.step, loss=result.loss, learning_rate=rate)

        def save(step: int) -> None:
            with timed(cost.checkpoints):
                path = save_checkpoint(folder / "checkpoints", snapshot(state, step, {}), keep=2)
            cost.size = sum(file.stat().st_size for file in path.iterdir())
            with timed(cost.answers):
                note_answers(state, answering, step, say, event)
            with timed(cost.reports):
                write_report_or_say(logs, say)

        fit(state, Events(stepped=stepped, save=save, save_every_steps=settings.save_every_steps))
    # The last save comes after the last step.
    cost.training = moments[-1] - moments[WARM_UP_STEPS - 1] - sum(cost.together[:-1])
    return cost


def sample_state(settings: Settings, folder: Path, console: Console):
    """The sample model and chat, ready to train, and what answers the sample questions."""
    from discord_lora.base_model import load_tokenizer
    from discord_lora.conversations.dataset_cache import open_dataset
    from discord_lora.finetuning.forecast import loaded_state, plan_as_set
    from discord_lora.hardware import detect_hardware
    from discord_lora.inference.sample_answers import SampleAnswers
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
    answering = SampleAnswers(
        lambda: load_tokenizer(location),
        dataset.voice,
        dataset.validation_examples,
        settings.sample_answers,
    )
    return loaded_state(settings, dataset, plan, location, detect_hardware(), say), answering


if __name__ == "__main__":
    run_script(main)
