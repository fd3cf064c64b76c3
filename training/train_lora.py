"""Fine-tune a LoRA adapter on data/training_data.jsonl."""

from contextlib import closing
from typing import TYPE_CHECKING

from rich.console import Console

from discord_lora.console import make_console, plainly, run_script
from discord_lora.messages.cycle_collection import without_cycle_collection
from discord_lora.script_options import add_setting_options, parse_with_settings, script_parser
from discord_lora.settings import Settings
from discord_lora.typed_command import script_command

if TYPE_CHECKING:
    from pathlib import Path

    from discord_lora.conversations.dataset import Dataset
    from discord_lora.conversations.packing import TrainingPlan
    from discord_lora.inference.sample_answers import SampleAnswers

EXAMPLES = """\
  python training/train_lora.py                                   all from .env
  python training/train_lora.py --max-steps 500                   a first look at the data
  python training/train_lora.py --check                           in seconds: will it run?
  python training/train_lora.py --persona calm.heron --epochs 2   clone one member
  python training/train_lora.py --continue-from adapters/calm.heron-sample --epochs 0.5
                                                                  half an epoch more

Ctrl+C, or a file named STOP in the run's folder, saves and stops; the same command goes on.
Watch it from a second window:
  PowerShell: Get-Content logs/training.log -Wait -Tail 5     Linux: tail -f logs/training.log"""


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    parser.add_argument(
        "--fresh", action="store_true", help="delete this run's folder and start over"
    )
    parser.add_argument(
        "--check", action="store_true", help="do everything but train: will it run, and how long?"
    )
    add_setting_options(parser)
    args, settings = parse_with_settings(parser)
    # Imported from here on so that --help and settings errors answer at once.
    with without_cycle_collection():
        from discord_lora.finetuning.preflight import Run, check, preflight
        from discord_lora.finetuning.processes import join_processes
        from discord_lora.finetuning.refusals import all_problems_at_once
        from discord_lora.finetuning.run_folder import choose_run_folder, fingerprint
        from discord_lora.finetuning.session import Session

    processes = join_processes()
    console = make_console(quiet=not processes.is_main_process)
    with processes.main_process_first():
        with all_problems_at_once(settings, fresh=args.fresh):
            dataset, location = load_dataset(settings, console)
            data_fingerprint = fingerprint(dataset.training_examples)
            plan = make_plan(settings, dataset, data_fingerprint, console)
            folder = choose_run_folder(settings, dataset.voice, data_fingerprint, fresh=args.fresh)
        run = Run(settings, dataset, plan, location, folder, fresh=args.fresh)
        if not (args.check or run.is_finished):
            preflight(run, console)
            if processes.is_main_process:
                folder.create(plainly(console), fresh=args.fresh)
    if args.check:
        check(run, console)
        return None
    if folder.is_finished:
        say_finished(folder.path, console)
        return None
    with closing(folder):
        console.print(f"loading {settings.base_model}", markup=False)
        session = Session.open(
            settings, dataset, plan, location=location, folder=folder, console=console
        )
        if settings.sample_answers:
            session.answering = sample_answers(settings, dataset, location)
        session.run(console)
    say_finished(folder.path, console)
    return None


def load_dataset(settings: Settings, console: Console) -> "tuple[Dataset, str]":
    """Messages into tokenized examples; also where the base model lies."""
    from discord_lora.base_model import load_tokenizer
    from discord_lora.conversations.dataset_cache import open_dataset
    from discord_lora.model_location import locate_base_model

    report = plainly(console)

    def locate() -> str:
        return locate_base_model(settings.base_model, report)

    dataset = open_dataset(settings, lambda: load_tokenizer(locate()), report)
    return dataset, locate()


def make_plan(
    settings: Settings, dataset: "Dataset", data_fingerprint: str, console: Console
) -> "TrainingPlan":
    """The optimizer steps of this run, with the arithmetic shown."""
    from discord_lora.conversations.packing import plan_training
    from discord_lora.finetuning.adapter import steps_already_seen

    plan = plan_training(
        dataset.training_examples,
        messages_per_step=settings.messages_per_step,
        epochs=settings.epochs,
        max_steps=settings.max_steps,
        seed=settings.seed,
        skip_steps=steps_already_seen(settings, data_fingerprint),
    )
    held_out = sum(example.targets for example in dataset.validation_examples)
    measured = f"held-out loss on {held_out:,} further messages" if held_out else "nothing held out"
    early = " (EPOCHS ends it before MAX_STEPS)" if plan.steps < settings.max_steps else ""
    console.print(
        f"learning to speak as {dataset.voice.name}: {plan.messages:,} messages of "
        f"{dataset.voice.learns_from} in {len(plan.examples):,} examples; {measured}\n"
        f"{plan.messages:,} / ({settings.batch_size} x {settings.gradient_accumulation_steps}) = "
        f"{plan.steps_per_epoch:,} steps an epoch; this run: {plan.steps:,} steps{early}"
        + (f", after {plan.skip_steps:,} that the adapter has seen" if plan.skip_steps else ""),
        markup=False,
    )
    return plan


def sample_answers(settings: Settings, dataset: "Dataset", location: str) -> "SampleAnswers":
    """What answers the same held-out questions at each checkpoint."""
    from discord_lora.base_model import load_tokenizer
    from discord_lora.inference.sample_answers import SampleAnswers

    return SampleAnswers(
        lambda: load_tokenizer(location),
        dataset.voice,
        dataset.validation_examples,
        settings.sample_answers,
    )


def say_finished(folder: "Path", console: Console) -> None:
    talk = script_command("scripts/chat.py", "--adapter", folder)
    further = script_command("training/train_lora.py", "--continue-from", folder, "--epochs", 0.5)
    plainly(console)(
        f"The adapter is finished: {folder}\n  talk to it:       {talk}\n"
        f"  train it further: {further}"
    )


if __name__ == "__main__":
    run_script(main)
