"""Whom and where the bot may answer, as the settings say."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, time, timedelta, tzinfo
from zoneinfo import ZoneInfo

from discord_lora.settings import Settings, ids_in

_SPAN = re.compile(r"(\d{1,2}):(\d{2}) ?- ?(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class QuietHours:
    """From one time of day to another, over midnight if need be. `zone` None: this computer's."""

    start: time
    end: time
    zone: tzinfo | None = None

    @classmethod
    def parse(cls, span: str, zone: str = "") -> "QuietHours | None":
        """`23:00-07:30` as QUIET_HOURS has it; None for the empty text. Raises ValueError."""
        if not span:
            return None
        match = _SPAN.fullmatch(span)
        if match is None:
            raise ValueError("no span of hours")
        from_hour, from_minute, to_hour, to_minute = map(int, match.groups())
        start, end = time(from_hour, from_minute), time(to_hour, to_minute)
        return cls(start, end, ZoneInfo(zone) if zone else None)

    def cover(self, now: datetime) -> bool:
        """True if `now` (aware) is in them; a span from a time to itself is the whole day."""
        clock = now.astimezone(self.zone).time()
        if self.start < self.end:
            return self.start <= clock < self.end
        return clock >= self.start or clock < self.end


@dataclass(frozen=True, slots=True)
class SpeakRules:
    """The settings of the bot's manners; ids as strings, empty lists allow everything."""

    owners: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()
    probability: float = 0.05
    channel_cooldown: timedelta = timedelta(seconds=60)
    user_cooldown: timedelta = timedelta(0)
    answer_bots: bool = False
    allowed_users: frozenset[str] = frozenset()
    blocked_users: frozenset[str] = frozenset()
    allowed_roles: frozenset[str] = frozenset()
    blocked_roles: frozenset[str] = frozenset()
    allowed_channels: frozenset[str] = frozenset()
    blocked_channels: frozenset[str] = frozenset()
    quiet_hours: QuietHours | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> "SpeakRules":
        return cls(
            owners=ids_in(settings.bot_owners),
            channels=ids_in(settings.bot_channels),
            probability=settings.speak_up_probability,
            channel_cooldown=timedelta(seconds=settings.speak_up_cooldown_seconds),
            user_cooldown=timedelta(seconds=settings.cooldown_seconds),
            answer_bots=settings.answer_bots,
            allowed_users=ids_in(settings.allowed_users),
            blocked_users=ids_in(settings.blocked_users),
            allowed_roles=ids_in(settings.allowed_roles),
            blocked_roles=ids_in(settings.blocked_roles),
            allowed_channels=ids_in(settings.allowed_channels),
            blocked_channels=ids_in(settings.blocked_channels),
            quiet_hours=QuietHours.parse(settings.quiet_hours, settings.bot_timezone),
        )

    def objection_to_place(self, place_ids: Iterable[str], *, is_dm: bool = False) -> str | None:
        """The list that speaks against answers there."""
        places = set(place_ids)
        if places & self.blocked_channels:
            return "the channel is blocked"
        if self.allowed_channels and not is_dm and not places & self.allowed_channels:
            return "the channel is not among the allowed ones"
        return None

    def objection_to_user(self, user_id: str, role_ids: frozenset[str] | None) -> str | None:
        """The list that speaks against answers to them; blocking goes before allowing.

        `role_ids` None: not known, and so no role that is allowed, but maybe one that is blocked.
        """
        if user_id in self.owners:
            return None
        if user_id in self.blocked_users:
            return "the user is blocked"
        if self.blocked_roles and role_ids is None:
            return "the user's roles are not known"
        roles = role_ids or frozenset()
        if roles & self.blocked_roles:
            return "a role of the user's is blocked"
        if not (self.allowed_users or self.allowed_roles):
            return None
        allowed = user_id in self.allowed_users or roles & self.allowed_roles
        return None if allowed else "the user is not among the allowed ones"
