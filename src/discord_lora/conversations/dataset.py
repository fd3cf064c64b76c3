"""From settings and messages to what training needs: the voice, the split, the examples."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from discord_lora.console import UserError
from discord_lora.conversations.build import Conversation, build_conversations, from_ready
from discord_lora.conversations.examples import Limits, TokenizedExample, make_examples
from discord_lora.conversations.prompt_format import (
    PromptFormat,
    Voice,
    persona_voice,
    ready_voice,
    server_voice,
)
from discord_lora.conversations.split import split_conversations
from discord_lora.messages.cycle_collection import without_cycle_collection
from discord_lora.messages.find_named import Named, find_named
from discord_lora.messages.record import Message
from discord_lora.messages.training_data import TrainingData
from discord_lora.settings import Settings


@dataclass(frozen=True, slots=True)
class Grouped:
    """Conversations before they are tokenized."""

    voice: Voice
    training: list[Conversation]
    held_out: list[Conversation]


@dataclass(frozen=True, slots=True)
class Dataset:
    """What training needs of the data. The messages themselves are not kept for the night."""

    voice: Voice
    training_conversations: int
    held_out_conversations: int
    training_examples: list[TokenizedExample]
    validation_examples: list[TokenizedExample]
    remarks: tuple[str, ...] = ()
    """What the reader said about lines that it did not take as they stand."""


@without_cycle_collection()
def make_dataset(data: TrainingData, settings: Settings, tokenizer: Any) -> Dataset:
    """Group, split, render and tokenize.

    Raises:
        UserError: the persona is unknown or ambiguous, or nothing is left to train on.
    """
    dataset = tokenize(group(data, settings), settings, tokenizer)
    return replace(dataset, remarks=tuple(data.remarks()))


def group(data: TrainingData, settings: Settings) -> Grouped:
    """Choose the voice, build the conversations and part the held-out ones.

    Raises:
        UserError: the persona is unknown or ambiguous, or the data mix two shapes.
    """
    voice = choose_voice(data, settings)
    conversations = _conversations(data, settings, voice)
    fraction = settings.validation_fraction
    return Grouped(voice, *split_conversations(conversations, fraction, voice.is_target))


def tokenize(grouped: Grouped, settings: Settings, tokenizer: Any) -> Dataset:
    """Render and tokenize.

    Raises:
        UserError: the system prompt leaves no room, or nothing is left to train on.
    """
    prompt_format = PromptFormat(tokenizer, grouped.voice)
    limits = Limits(
        settings.max_seq_length, settings.context_tokens, max_targets=settings.messages_per_step
    )
    # Held-out conversations are cut by length alone: their loss must not depend on the step size.
    whole = Limits(settings.max_seq_length, settings.context_tokens)
    _check_room(prompt_format, settings)
    training = make_examples(grouped.training, prompt_format, limits)
    held_out = make_examples(grouped.held_out, prompt_format, whole)
    if not training:
        raise UserError(
            f"{settings.training_data_path} holds no message to train on: every line is context "
            'only ("train": false) or another member\'s. Prepare more data, or set another PERSONA.'
        )
    return Dataset(
        grouped.voice,
        len(grouped.training),
        len(grouped.held_out),
        training,
        _sample(held_out, settings.max_validation_messages),
    )


def _sample(examples: list[TokenizedExample], most: int) -> list[TokenizedExample]:
    """Examples with about `most` target messages, evenly spread over `examples`; 0: all."""
    messages = sum(example.targets for example in examples)
    if not most or messages <= most:
        return examples
    wanted = max(1, round(len(examples) * most / messages))
    return [examples[i * len(examples) // wanted] for i in range(wanted)]


def choose_voice(data: TrainingData, settings: Settings) -> Voice:
    """The voice that PERSONA, BOT_NAME and the shape of the data ask for."""
    if data.conversations and not data.messages:
        prompt = settings.system_prompt or _usual_system_prompt(data)
        return ready_voice(settings.persona or settings.bot_name, prompt)
    if settings.persona:
        member = find_persona(data.messages, settings.persona)
        return persona_voice(member.author, member.author_id, settings.system_prompt)
    return server_voice(settings.bot_name, settings.system_prompt)


def _usual_system_prompt(data: TrainingData) -> str:
    """What most ready conversations begin with: what a chat will begin with, too."""
    prompts = Counter(
        turn.content for c in data.conversations for turn in c.turns if turn.role == "system"
    )
    return prompts.most_common(1)[0][0] if prompts else ""


def find_persona(messages: Sequence[Message], persona: str) -> Message:
    """A message of the member whose id, user name or nickname is `persona`, in any case.

    Raises:
        UserError: nobody is called so (with the nearest names), or several people are.
    """
    counts = Counter(message.author_id for message in messages)
    people = {message.author_id: message for message in messages}
    members = [Named(who, (it.username, it.author), counts[who]) for who, it in people.items()]
    return people[find_named(members, persona, "PERSONA").id]


def _conversations(data: TrainingData, settings: Settings, voice: Voice) -> list[Conversation]:
    if voice.kind == "ready":
        return [from_ready(ready, order) for order, ready in enumerate(data.conversations)]
    if data.conversations:
        raise UserError(
            f"{settings.training_data_path} mixes {len(data.messages):,} messages with "
            f"{len(data.conversations):,} ready conversations; keep them in two files and train "
            "one after the other (CONTINUE_FROM)."
        )
    return build_conversations(data.messages, settings.conversation_gap_minutes)


def _check_room(prompt_format: PromptFormat, settings: Settings) -> None:
    if prompt_format.overhead + settings.context_tokens >= settings.max_seq_length * 3 // 4:
        raise UserError(
            f"SYSTEM_PROMPT and CONTEXT_TOKENS take {prompt_format.overhead:,} + "
            f"{settings.context_tokens:,} of MAX_SEQ_LENGTH={settings.max_seq_length:,} tokens; "
            "shorten them or raise MAX_SEQ_LENGTH."
        )
