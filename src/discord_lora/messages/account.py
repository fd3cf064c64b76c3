"""What a run read, kept and dropped: the numbers always add up."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from discord_lora.messages.detect import Format
from discord_lora.messages.record import Reject
from discord_lora.messages.sources.base import Channel

DUPLICATE = "duplicate of another export"


def account_beside(training_data: Path) -> Path:
    """Where the account of preparing a file lies."""
    return training_data.with_name(f"{training_data.stem}.account.json")


@dataclass
class ChannelCount:
    """One channel's account: `read` = `kept` + all of `dropped`."""

    channel: Channel
    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class PrepareReport:
    """What a run did. `read` = `kept` + dropped, in total and in every channel."""

    channels: list[ChannelCount] = field(default_factory=list)
    files: Counter[Format] = field(default_factory=Counter)
    conversations: int = 0
    replies: int = 0
    answered_replies: int = 0
    people: int = 0
    """Authors of the messages read."""
    rejects: int = 0
    first_reject: Reject | None = None
    unrecognised: list[Reject] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def read(self) -> int:
        """Messages read, copies included."""
        return sum(count.read for count in self.channels)

    @property
    def kept(self) -> int:
        """Messages written."""
        return sum(count.kept for count in self.channels)

    @property
    def dropped(self) -> Counter[str]:
        """Messages dropped, by reason."""
        total: Counter[str] = Counter()
        for count in self.channels:
            total.update(count.dropped)
        return total

    @property
    def has_data_package(self) -> bool:
        """True when Discord's data package was among the inputs."""
        return bool(self.files[Format.DATA_PACKAGE_JSON] or self.files[Format.DATA_PACKAGE_CSV])
