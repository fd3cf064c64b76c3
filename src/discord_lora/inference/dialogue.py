"""A conversation with the adapter as it happens: what was said, by whom, and what comes next."""

import math
from collections.abc import Iterator
from datetime import UTC, datetime

from discord_lora.conversations.build import Conversation
from discord_lora.conversations.prompt_format import Voice
from discord_lora.inference.backend import Request, Sampling
from discord_lora.inference.local_backend import LocalBackend
from discord_lora.messages.fields import without_surrogates
from discord_lora.messages.record import Message


class Dialogue:
    """One person, or several taking turns under their names, talking with the voice."""

    def __init__(self, backend: LocalBackend, sampling: Sampling, *, name: str) -> None:
        self.backend = backend
        self.sampling = sampling
        self.name = name
        self.messages: list[Message] = []
        self.seed: int | None = None
        self.use_adapter = True

    def say(self, text: str) -> Iterator[str]:
        """Add a message of the person called `name` and stream the reply to it."""
        self.messages.append(self._message(self.name, f"user:{self.name}", text))
        return self._reply()

    def retry(self) -> Iterator[str] | None:
        """Forget the last reply and stream another one; None if nothing was said yet."""
        speaker = self.backend.voice.speaker_id
        while self.messages and self.messages[-1].author_id == speaker:
            self.messages.pop()
        return self._reply() if self.messages else None

    def reset(self) -> None:
        """Forget everything that was said."""
        self.messages.clear()

    def _reply(self) -> Iterator[str]:
        request = Request(
            Conversation("dialogue", "dialogue", tuple(self.messages)),
            self.sampling,
            channel="dialogue",
            addressed=True,
            seconds=math.inf,
            seed=self.seed,
        )
        pieces = []
        try:
            for piece in self.backend.stream(request, use_adapter=self.use_adapter):
                pieces.append(piece)
                yield piece
        finally:
            # What was heard before an interruption was said.
            text = "".join(pieces).strip()
            if text:
                voice = self.backend.voice
                self.messages.append(self._message(voice.name, voice.speaker_id, text))

    def _message(self, author: str, author_id: str, content: str) -> Message:
        return Message(
            id=str(len(self.messages)),
            guild="",
            channel_id="dialogue",
            channel="dialogue",
            timestamp=datetime.now(UTC),
            author_id=author_id,
            author="" if _is_nameless(self.backend.voice) else without_surrogates(author),
            content=without_surrogates(content),
        )


def _is_nameless(voice: Voice) -> bool:
    """Ready conversations were trained without names in front of the texts."""
    return voice.kind == "ready"
