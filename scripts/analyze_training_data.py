"""See what training would learn from: conversations, examples, steps, trained tokens."""

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from discord_lora.console import make_console, plainly, run_script
from discord_lora.settings import (
    Settings,
    add_setting_options,
    parse_with_settings,
    script_parser,
    write_env,
)

if TYPE_CHECKING:
    from discord_lora.conversations.dataset import Dataset
    from discord_lora.messages.training_data import TrainingData

EXAMPLES = """\
  python scripts/analyze_training_data.py                         what is in the data
  python scripts/analyze_training_data.py --show-sample 3         and what is trained on
  python scripts/analyze_training_data.py --persona calm.heron    for one member

In a sample the trained tokens are green; where there is no colour they stand in >> <<."""

SETTINGS = (
    "training_data_path",
    "persona",
    "bot_name",
    "system_prompt",
    "base_model",
    "conversation_gap_minutes",
    "validation_fraction",
    "max_seq_length",
    "context_tokens",
    "quantization",
    "lora_r",
    "gradient_checkpointing",
    "max_tokens_per_microbatch",
    "packing",
    "learning_rate",
    "logs_dir",
    "max_validation_messages",
    "save_every_steps",
    "batch_size",
    "gradient_accumulation_steps",
    "seed",
)


def main() -> int | None:
    parser = script_parser(__doc__ or "", EXAMPLES)
    add = parser.add_argument
    add("--gpu", default="", metavar="NAME",
        help="plan for this card instead of this machine, such as 'RTX 2080 Ti'")  # fmt: skip
    add("--calibrate", action="store_true",
        help="time about twenty real micro-batches here, so that the plan is right")  # fmt: skip
    add("--seconds-per-step", type=float, metavar="S",
        help="times of another trainer that needs S seconds a step")  # fmt: skip
    add("--ready-by", metavar="HH:MM", help="what ends by then")
    add("--hours", type=float, metavar="H", help="what ends within so many hours")
    add("--write-env", action="store_true",
        help="put the recommended lines into .env; the old one is kept as .env.backup")  # fmt: skip
    parser.add_argument(
        "--show-sample",
        type=int,
        default=0,
        metavar="N",
        help="print N examples, trained tokens marked",
    )
    add_setting_options(parser, SETTINGS)
    args, settings = parse_with_settings(parser)

    from discord_lora.base_model import load_tokenizer, locate_base_model
    from discord_lora.conversations.dataset_cache import DatasetCache
    from discord_lora.messages.training_data import read_training_data

    console = make_console()
    cache = DatasetCache(settings.training_data_path)
    data = read_training_data(settings.training_data_path)
    show_messages(data, console)
    tokenizer = load_tokenizer(locate_base_model(settings.base_model, plainly(console)))
    dataset = cache.recall_or_make(settings, tokenizer, lambda: data)
    show_examples(dataset, settings, console)
    show_samples(dataset, tokenizer, max(0, args.show_sample), settings.seed, console)
    plan_the_night(args, settings, console)
    return None


def plan_the_night(args: Any, settings: Settings, console: Console) -> None:
    """Memory, choices and what ends in time."""
    from discord_lora.analysis import plan_page
    from discord_lora.analysis.night import plan_for
    from discord_lora.finetuning.forecast import Asked, forecast

    now = datetime.now().astimezone()
    seconds = plan_page.seconds_allowed(args.ready_by, args.hours, now)
    asked = Asked(args.gpu, args.calibrate, args.seconds_per_step)
    plan = forecast(settings, asked, console)
    plan_page.show_plan(plan, settings, console, classic=args.seconds_per_step or 0.0)
    chosen = plan.recommendation.strategy
    if seconds is not None:
        deadline = plan_for(plan, seconds, settings.messages_per_step)
        plan_page.show_deadline(deadline, settings, console, now)
        chosen = deadline.strategy if deadline else None
    if args.write_env and chosen:
        path = args.env_file or Path(".env")
        backup = write_env(path, chosen.env(settings.learning_rate))
        kept = f"; the old one is {backup}" if backup else ""
        console.print(f"written into {path}{kept}", markup=False)


def show_messages(data: "TrainingData", console: Console) -> None:
    """Counts of what the file holds."""
    console.print(
        f"{data.lines:,} lines: {len(data.messages):,} messages, "
        f"{len(data.conversations):,} ready conversations, {len(data.rejects):,} unreadable"
    )
    for line in data.remarks():
        console.print(line, markup=False)
    if not data.messages:
        return
    people = Counter(message.author for message in data.messages)
    first = min(message.timestamp for message in data.messages)
    last = max(message.timestamp for message in data.messages)
    top = ", ".join(
        f"{name} {count / len(data.messages):.0%}" for name, count in people.most_common(5)
    )
    console.print(
        f"from {first:%Y-%m-%d} to {last:%Y-%m-%d}, "
        f"{len({message.channel_id for message in data.messages}):,} channels, "
        f"{len(people):,} people; the most active: {top}",
        markup=False,
    )


def show_examples(dataset: "Dataset", settings: Settings, console: Console) -> None:
    """Counts of what becomes of it."""
    from discord_lora.conversations.packing import steps_per_epoch

    examples = dataset.training_examples
    messages = sum(example.targets for example in examples)
    tokens = sum(map(len, examples))
    trained = sum(int(example.trained.sum()) for example in examples)
    console.print(
        f"{dataset.training_conversations:,} conversations to train on, "
        f"{dataset.held_out_conversations:,} held out\n"
        f"{messages:,} messages of {dataset.voice.learns_from} in {len(examples):,} examples, "
        f"{tokens:,} tokens, {trained:,} of them trained ({trained / tokens:.0%})\n"
        f"{messages:,} / {settings.messages_per_step} = "
        f"{steps_per_epoch(messages, settings.messages_per_step):,} optimizer steps an epoch",
        markup=False,
    )


def show_samples(
    dataset: "Dataset", tokenizer: Any, count: int, seed: int, console: Console
) -> None:
    """Print examples as the model sees them."""
    import numpy as np

    examples = dataset.training_examples
    chosen = np.random.default_rng(seed).permutation(len(examples))[:count]
    for number in chosen:
        example = examples[number]
        title = Text(f"conversation {example.conversation_id}, {len(example)} tokens")
        console.rule(title, characters="-")
        text = Text()
        borders = np.flatnonzero(np.diff(example.trained)) + 1
        for run in np.split(np.arange(len(example)), borders):
            piece = tokenizer.decode(example.input_ids[run].tolist())
            if not example.trained[run[0]]:
                text.append(piece, style="dim")
            elif console.is_terminal:
                text.append(piece, style="bold green")
            else:
                text.append(f">>{piece}<<")
        console.print(text)


if __name__ == "__main__":
    run_script(main)
