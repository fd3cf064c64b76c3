"""All that exists, the clock of ids, the lock, and the bell that rings at each change.

A test and the HTTP routes change the state through the same methods. All of them hold one lock,
so a test may call them from its own thread; each tells the gateway and wakes whoever waits.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from fake_discord.rights import NO_INTENT, Intents

if TYPE_CHECKING:
    from fake_discord.channels import Channel
    from fake_discord.interactions import Interaction
    from fake_discord.people import Bot, Guild, User

Json = dict[str, Any]
T = TypeVar("T")
DISCORD_EPOCH_MS = 1_420_070_400_000
SECONDS_TO_WAIT = 10.0
# How often waiting looks at what nobody announces, such as time itself.
LOOK_SECONDS = 0.02


@dataclass(frozen=True)
class Event:
    """Something for the gateway: who may hear of it, and what each of them gets to see."""

    name: str
    payload: Callable[[Bot, Intents], Json]
    intent: Intents = NO_INTENT
    # All who see the channel, all in the guild, or this one.
    guild: Guild | None = None
    channel: Channel | None = None
    bot: Bot | None = None


def same_for_all(payload: Json) -> Callable[[Bot, Intents], Json]:
    """A payload that does not depend on who gets it."""

    def shown(_bot: Bot, _intents: Intents) -> Json:
        return payload

    return shown


class World:
    def __init__(self) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.users: dict[int, User] = {}
        self.guilds: dict[int, Guild] = {}
        self.channels: dict[int, Channel] = {}
        self.interactions: dict[str, Interaction] = {}
        # Set by the gateway.
        self.publish: Callable[[Event], None] | None = None
        self._last_id = 0

    def new_id(self, at: datetime | None = None) -> int:
        """A snowflake: milliseconds since 2015 above 22 bits; those of now always grow."""
        moment = (at or datetime.now(UTC)).timestamp()
        snowflake = (int(moment * 1000) - DISCORD_EPOCH_MS) << 22
        if at is not None:
            return snowflake | secrets.randbits(22)
        self._last_id = max(snowflake, self._last_id + 1)
        return self._last_id

    def tell(self, event: Event | None = None) -> None:
        if event is not None and self.publish is not None:
            self.publish(event)
        self.changed.notify_all()

    def wait_until(
        self, value: Callable[[], T], timeout: float = SECONDS_TO_WAIT, what: str = "it"
    ) -> T:
        """The first true value of `value()`, asked anew after each change.

        Raises TimeoutError saying what did not happen.
        """
        until = time.monotonic() + timeout
        with self.changed:
            while not (found := value()):
                if not self.changed.wait(min(LOOK_SECONDS, until - time.monotonic())) and (
                    time.monotonic() >= until
                ):
                    raise TimeoutError(f"{what} did not happen within {timeout} s")
            return found


def snowflake_time(snowflake: int) -> datetime:
    return datetime.fromtimestamp(((snowflake >> 22) + DISCORD_EPOCH_MS) / 1000, UTC)
