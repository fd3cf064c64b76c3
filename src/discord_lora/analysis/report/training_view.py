"""What becomes of the messages in training, and examples of it as the model sees them."""

from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from discord_lora.console import plainly
from discord_lora.conversations.steps import steps_per_epoch
from discord_lora.model_location import locate_base_model
from discord_lora.settings import Settings

if TYPE_CHECKING:
    from discord_lora.conversations.dataset import Dataset


def show_training_view(settings: Settings, samples: int, console: Console) -> None:
    """Print what becomes of TRAINING_DATA_PATH, and `samples` examples with the trained tokens.

    Raises UserError as training would: no tokenizer, an unknown persona, nothing to train on.
    """
    # They bring torch, which the report itself does without.
    from discord_lora.base_model import load_tokenizer  # noqa: PLC0415
    from discord_lora.conversations.dataset_cache import open_dataset  # noqa: PLC0415

    tokenizer = load_tokenizer(locate_base_model(settings.base_model, plainly(console)))
    dataset = open_dataset(settings, lambda: tokenizer, lambda _: None)
    console.print()
    show_examples(dataset, settings, console)
    show_samples(dataset, tokenizer, samples, settings.seed, console)


def show_examples(dataset: "Dataset", settings: Settings, console: Console) -> None:
    """Counts of what becomes of the messages."""
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
