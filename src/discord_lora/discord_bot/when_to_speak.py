"""Whether to answer a message, and why: the reason is what `/why` and the log show.

Spoken to (by `@`, by name, by a reply, in a direct message, in a thread of its own) the bot
answers. In BOT_CHANNELS it also speaks up unasked, with the chance

    p = min(1/2, SPEAK_UP_PROBABILITY * 2**-unanswered * (1 + 3 * 2**(-minutes / 10)))

unanswered: its unasked answers in the channel since somebody last spoke to it.
minutes:    since somebody last spoke to it there; the last factor is 1 if nobody ever did.

So it falls silent where nobody takes it up, and is livelier for a while where it is welcome.
Clock and chance are given, so that every decision can be replayed.
"""

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.discord_bot.speak_rules import SpeakRules

MOST_UNASKED = 0.5
"""Highest chance of an unasked answer."""

WELCOME_FACTOR = 3.0
WELCOME_HALF_LIFE_MINUTES = 10.0
MOST_ANSWERS_TO_BOTS = 3
"""Answers to bots in one channel before a person has to speak: two bots would never stop."""

_REMEMBERED = 10_000
"""Channels and users whose state is kept; the longest untouched are the first to go."""

_ANSWERED_JUST_NOW = "the user was answered a moment ago"
_NOT_SAID = re.compile(
    r"```.*?(?:```|\Z)|``.+?``|`[^`\n]+`"  # code
    r"|<[^<>\s]+>|\bhttps?://\S+"  # mentions, emoji, links
    r"|^>>> .*|^> [^\n]*",  # quotes
    re.DOTALL | re.MULTILINE,
)


class Answer(Enum):
    """What to do with a message."""

    ADDRESSED = "answer, spoken to"
    UNASKED = "speak up unasked"
    SILENT = "stay silent"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, and why, in a few words."""

    answer: Answer
    reason: str
    acknowledge: bool = False
    """True where it was spoken to and stays silent all the same: a reaction says it heard."""

    @property
    def speaks(self) -> bool:
        return self.answer is not Answer.SILENT

    def __str__(self) -> str:
        return f"{self.answer.value}: {self.reason}"


@dataclass(slots=True)
class _ChannelState:
    unanswered: int = 0
    addressed_at: datetime | None = None
    spoke_up_at: datetime | None = None
    answers_to_bots: int = 0


@dataclass
class WhenToSpeak:
    """Decides message by message. `hear` each newly created message once, in order."""

    rules: SpeakRules
    names: Iterable[str]
    """What the bot is called: the persona's name, its name in Discord."""
    clock: Callable[[], datetime]
    """The time now, with its zone."""
    chance: Callable[[], float]
    """A random number from 0 up to 1, such as `random.random`."""
    opted_out: Container[str] = frozenset()
    _channels: OrderedDict[str, _ChannelState] = field(default_factory=OrderedDict, init=False)
    _answered_user: OrderedDict[str, datetime] = field(default_factory=OrderedDict, init=False)
    _quiet: dict[str | None, datetime | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.be_called(self.names)

    def be_called(self, names: Iterable[str]) -> None:
        """Listen to these names from now on."""
        self.names = list(names)
        self._called = _name_pattern(self.names)

    # Commands -------------------------------------------------------------------------------

    def quiet(self, channel_id: str | None = None, until: datetime | None = None) -> None:
        """`/quiet`: silent in a channel and its threads (None: everywhere) until then or `wake`."""
        self._quiet[channel_id] = until

    def wake(self, channel_id: str | None = None) -> None:
        """`/wake`: undo `quiet` for a channel; None: for all of them."""
        if channel_id is None:
            self._quiet.clear()
        else:
            self._quiet.pop(channel_id, None)

    def is_quiet(self, places: Iterable[str] = ()) -> bool:
        """In any of these places, which are a channel and what it belongs to, or everywhere."""
        return any(self._is_quiet(place) for place in (*places, None))

    # Decisions ------------------------------------------------------------------------------

    def hear(self, seen: SeenMessage) -> Decision:
        """Take note of a message and decide."""
        if seen.is_own:
            return _silent("it is the bot's own")
        if not seen.is_talk:
            return _silent("it is a notice, not talk")
        state = self._state(seen.channel_id)
        if not seen.by_other_bot:
            state.answers_to_bots = 0
        addressed = self.how_addressed(seen)
        if objection := self._objection(seen, state):
            return _silent(objection)
        now = self.clock()
        if addressed:
            state.unanswered, state.addressed_at = 0, now
        if silence := self._silence(seen, now):
            return _silent(silence, acknowledge=bool(addressed))
        if addressed:
            decision = self._answer_or_cool_down(seen, addressed, now)
        else:
            decision = self._speak_up_or_not(seen, state, now)
        if decision.speaks and seen.by_other_bot:
            state.answers_to_bots += 1
        return decision

    def objection_to_another(self, answer: SeenMessage, user_id: str) -> str | None:
        """Why an answer should not be written anew for this user now; without one it is their turn.

        Args:
            answer: a message of the bot's own, where they ask for it.
        """
        now = self.clock()
        if silence := self._silence(answer, now):
            return silence
        return None if self._takes_turn(user_id, now) else _ANSWERED_JUST_NOW

    def how_addressed(self, seen: SeenMessage) -> str | None:
        """In which way a message speaks to the bot; None if it does not."""
        if seen.mentions_bot:
            return "mentioned"
        if seen.replies_to_bot:
            return "replied to"
        if seen.is_dm:
            return "a direct message"
        if self._called.search(_NOT_SAID.sub(" ", seen.typed)):
            return "called by name"
        if seen.in_own_thread and not seen.speaks_to_others:
            return "in its own thread"
        return None

    def probability(self, channel_id: str) -> float:
        """The chance of an unasked answer there, now."""
        state = self._channels.get(channel_id, _ChannelState())
        since = self.clock() - state.addressed_at if state.addressed_at else None
        return chance_to_speak_up(self.rules.probability, state.unanswered, since)

    # Inside ---------------------------------------------------------------------------------

    def _objection(self, seen: SeenMessage, state: _ChannelState) -> str | None:
        """What forbids any answer to this author or in this place, without a sign."""
        if seen.author_id in self.opted_out:
            return "the user opted out"
        if seen.by_other_bot and not self.rules.answer_bots:
            return "it is from a bot"
        if seen.by_other_bot and state.answers_to_bots >= MOST_ANSWERS_TO_BOTS:
            return f"{MOST_ANSWERS_TO_BOTS} answers to bots, and no person spoke since"
        return self.rules.objection_to_place(
            seen.place_ids, is_dm=seen.is_dm
        ) or self.rules.objection_to_user(seen.author_id, seen.role_ids)

    def _silence(self, seen: SeenMessage, now: datetime) -> str | None:
        if self.is_quiet(seen.place_ids):
            return "told to be quiet"
        hours = self.rules.quiet_hours
        return "quiet hours" if hours and not seen.is_dm and hours.cover(now) else None

    def _answer_or_cool_down(self, seen: SeenMessage, addressed: str, now: datetime) -> Decision:
        if not self._takes_turn(seen.author_id, now):
            return _silent(_ANSWERED_JUST_NOW, acknowledge=True)
        return Decision(Answer.ADDRESSED, addressed)

    def _takes_turn(self, user_id: str, now: datetime) -> bool:
        """Whether the user may be answered again; from then on the cool-down runs."""
        last = self._answered_user.get(user_id)
        if last is not None and now - last < self.rules.user_cooldown:
            return False
        self._answered_user[user_id] = now
        self._answered_user.move_to_end(user_id)
        forget_the_oldest(self._answered_user)
        return True

    def _speak_up_or_not(self, seen: SeenMessage, state: _ChannelState, now: datetime) -> Decision:
        if not self.rules.channels & set(seen.place_ids):
            return _silent("not spoken to")
        if not seen.parsed.content.strip():
            return _silent("nothing to read")
        last = state.spoke_up_at
        if last is not None and now - last < self.rules.channel_cooldown:
            return _silent("spoke up here a moment ago")
        probability = self.probability(seen.channel_id)
        if self.chance() >= probability:
            return _silent(f"not spoken to, and chance ({probability:.1%}) was against it")
        state.unanswered += 1
        state.spoke_up_at = now
        return Decision(Answer.UNASKED, f"its chance was {probability:.1%}")

    def _is_quiet(self, place: str | None) -> bool:
        if place not in self._quiet:
            return False
        until = self._quiet[place]
        if until is None or self.clock() < until:
            return True
        del self._quiet[place]
        return False

    def _state(self, channel_id: str) -> _ChannelState:
        state = self._channels.setdefault(channel_id, _ChannelState())
        self._channels.move_to_end(channel_id)
        forget_the_oldest(self._channels)
        return state


def chance_to_speak_up(base: float, unanswered: int, since: timedelta | None) -> float:
    """The formula at the head of this file; never above MOST_UNASKED, never below 0."""
    minutes = max(0.0, since.total_seconds() / 60) if since is not None else float("inf")
    welcome = 1 + WELCOME_FACTOR * math.exp2(-minutes / WELCOME_HALF_LIFE_MINUTES)
    return min(MOST_UNASKED, base * math.exp2(-unanswered) * welcome)


def _silent(reason: str, *, acknowledge: bool = False) -> Decision:
    return Decision(Answer.SILENT, reason, acknowledge)


def _name_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Any of the names as a whole word, in any case; nothing if there is none."""
    wanted = sorted({name.strip() for name in names} - {""}, key=len, reverse=True)
    if not wanted:
        return re.compile(r"(?!)")
    either = "|".join(r"\s+".join(map(re.escape, name.split())) for name in wanted)
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)


def forget_the_oldest(states: OrderedDict[Any, Any]) -> None:
    """Keep what is remembered bounded."""
    while len(states) > _REMEMBERED:
        states.popitem(last=False)
