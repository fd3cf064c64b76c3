"""What the bot asks of whatever generates replies, and what it gets. Nothing here loads torch."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import Voice
from discord_lora.settings import Settings


@dataclass(frozen=True, slots=True)
class Sampling:
    """How words are picked."""

    temperature: float
    top_p: float
    min_p: float
    repetition_penalty: float
    max_reply_tokens: int

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        return cls(
            temperature=settings.temperature,
            top_p=settings.top_p,
            min_p=settings.min_p,
            repetition_penalty=settings.repetition_penalty,
            max_reply_tokens=settings.max_reply_tokens,
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One reply that is wanted."""

    conversation: Conversation
    """As the channel shows it, oldest first."""
    sampling: Sampling
    channel: str
    """Whose cache to reuse. That a channel gets one answer at a time is the caller's matter."""
    addressed: bool
    """False: a contribution that nobody asked for; dropped first when busy."""
    seconds: float
    """Time limit, counted from the first step of the reply's iterator."""
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """For /status."""

    name: str
    model: str
    adapter: str
    waiting: int
    running: int
    replies: int
    """Answers since the start that came to their end."""
    tokens_per_second: float
    """Generated tokens in a second of work, all channels together; 0 before the first."""
    memory_bytes: int
    """In use here; 0 where another server has the model."""


class Busy(Exception):  # noqa: N818 - nothing went wrong
    """The queue is full: nothing will come for this request."""


class TooSlow(Exception):  # noqa: N818 - nothing went wrong
    """The time limit was over before the first word. After it, an answer just ends."""


class GenerationFailed(Exception):  # noqa: N818 - the cause is the error, and it is logged
    """Something went wrong, and is in the log with its traceback already."""


class Backend(Protocol):
    """Conversation in, reply out; many at once. All methods are called on one event loop."""

    @property
    def voice(self) -> Voice: ...

    def prompt(self, conversation: Conversation) -> list[int]:
        """Tokens of as much of the conversation's end as training could have seen at once."""
        ...

    def prompt_text(self, conversation: Conversation) -> str:
        """The same as text, special tokens visible."""
        ...

    def reply(self, request: Request) -> AsyncIterator[str]:
        """The reply, piece by piece as it is generated; closing the iterator ends it.

        Raises:
            Busy, TooSlow, GenerationFailed: from the iterator.
        """
        ...

    def status(self) -> BackendStatus: ...

    async def reload(self, folder: Path) -> None:
        """Speak with another adapter, once the answers that are running have ended.

        Raises:
            UserError: it cannot be loaded; the one before stays.
        """
        ...

    async def close(self) -> None:
        """End what is running and free what is held."""
        ...
