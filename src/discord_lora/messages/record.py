"""The two plain records that leave this stage; every later stage stands on them."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True)
class Message:
    """One Discord message, one line of `data/training_data.jsonl`.

    `author_id` is who it is; `author` is the name everybody is shown under, the same in every
    message of one file; `username` is the account name, kept so that a persona can be picked
    by it. `timestamp` is always zone-aware.
    """

    id: str
    guild: str
    channel_id: str
    channel: str
    timestamp: datetime
    author_id: str
    author: str
    content: str
    username: str = ""
    reply_to: str | None = None
    reactions: int = 0
    is_bot: bool = False
    train: bool = True
    """False keeps the message as context only: it is read by the model, never imitated."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation that arrived ready-made."""

    role: Literal["system", "user", "assistant"]
    content: str
    train: bool = False


@dataclass(frozen=True, slots=True)
class ReadyConversation:
    """A conversation in the OpenAI `messages` or ShareGPT shape: it skips grouping."""

    id: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """Something that could not be read, precise enough to go and look at it."""

    file: str
    place: str
    reason: str
