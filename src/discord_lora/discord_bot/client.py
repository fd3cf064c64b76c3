"""The bot in Discord: events → memory → decision → answer.

    on_message     remembered, decided upon, and answered where the decision says so
    edits, deletes followed in memory
    on_disconnect  from here on something may be missed
    on_ready       every channel is looked through for what was missed meanwhile

discord.py reconnects and resumes by itself and keeps to the rate limits.
"""

import asyncio
import itertools
import logging
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import discord

from discord_lora.discord_bot.answering import Answering
from discord_lora.discord_bot.catching_up import History
from discord_lora.discord_bot.channel_memory import ChannelMemory
from discord_lora.discord_bot.commands import Commands
from discord_lora.discord_bot.delivery import FAILED_REQUEST
from discord_lora.discord_bot.from_discord import places_of, seen_message
from discord_lora.discord_bot.journal import Journal
from discord_lora.discord_bot.lookups import Lookups
from discord_lora.discord_bot.manner import Manner
from discord_lora.discord_bot.question import Question
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.discord_bot.signs import APOLOGY, HEARD_SIGN
from discord_lora.discord_bot.speak_rules import SpeakRules
from discord_lora.discord_bot.when_to_speak import WhenToSpeak
from discord_lora.discord_bot.writing import Writer
from discord_lora.inference.backend import Backend
from discord_lora.messages.opt_out import OptOutLedger
from discord_lora.settings import DEFAULT_BOT_NAME, Settings

log = logging.getLogger(__name__)

INTENTS = discord.Intents(guilds=True, messages=True, message_content=True)
"""What it hears of: servers and their channels, messages there and direct ones, and their text."""

DIRECT_CHANNELS = 1000
"""Direct channels that are looked through after a lost connection; Discord does not list them."""

FINISH_SECONDS = 30.0
"""For answers that are being written when the bot is told to stop."""

FIRST_CONNECTION_SECONDS = (1, 2, 4, 8, 15, 30, 60)
"""From one try to the next while Discord has not let the bot in even once; then the last one."""


def utc_now() -> datetime:
    return datetime.now(UTC)


class BotClient(discord.Client):
    """A member of its servers."""

    def __init__(
        self,
        *,
        settings: Settings,
        backend: Backend,
        ledger: OptOutLedger,
        adapter: Path,
        clock: Callable[[], datetime] = utc_now,
        chance: Callable[[], float] = random.random,
        **options: Any,
    ) -> None:
        """
        Args:
            ledger: members who opted out.
            adapter: folder that `backend` speaks with.
            clock, chance: the time now, and a random number from 0 up to 1.
            options: discord.py's own.
        """
        super().__init__(
            intents=INTENTS,
            allowed_mentions=discord.AllowedMentions.none(),
            chunk_guilds_at_startup=False,
            max_messages=None,  # `memory` has what is needed of them
            **options,
        )
        self.settings = settings
        self.backend = backend
        self.ledger = ledger
        self.adapter = adapter
        self.clock = clock
        self.chance = chance
        self.started = clock()
        self.journal = Journal()
        self.manner = Manner.from_settings(settings)
        self.commands = Commands(self)
        self._direct: OrderedDict[int, None] = OrderedDict()

    async def setup_hook(self) -> None:
        """What needs to know who the bot is; nothing has been heard yet."""
        user = self._me()
        rules = SpeakRules.from_settings(self.settings)
        self.rules = rules if rules.owners else replace(rules, owners=self._owners_by_discord())
        self.memory = ChannelMemory(
            self.backend.voice,
            str(user.id),
            gap_minutes=self.settings.conversation_gap_minutes,
            opted_out=self.ledger,
            read_bots=self.settings.answer_bots,
            notices=(APOLOGY,),
        )
        self.lookups = Lookups(self, self.memory, self.rules)
        self.manners = WhenToSpeak(
            self.rules, self.names(), self.clock, self.chance, opted_out=self.ledger
        )
        self.history = History(
            self.memory,
            bot_id=user.id,
            is_known=lambda message_id: self.journal.decision(message_id) is not None,
            missed=self._take_up_missed,
            gone=self._gone,
            name=self.lookups.name,
            clock=self.clock,
        )
        self.writer = Writer(
            backend=self.backend,
            memory=self.memory,
            journal=self.journal,
            manner=self.manner,
            bot_id=user.id,
        )
        self.answering = Answering(
            writer=self.writer,
            memory=self.memory,
            journal=self.journal,
            history=self.history,
            is_quiet=lambda seen: self.manners.is_quiet(seen.place_ids),
            user=user,
        )
        await self.commands.register()

    # Events ---------------------------------------------------------------------------------

    async def on_disconnect(self) -> None:
        self.history.connection_lost()

    async def on_ready(self) -> None:
        """A session has begun: the first one, or one after Discord had forgotten the last."""
        log.info("%s is in %d servers", self._me().name, len(self.guilds))
        self.manners.be_called(self.names())
        await self._catch_up()

    async def on_resumed(self) -> None:
        log.info("the session goes on")
        await self._catch_up()

    async def on_message(self, message: discord.Message) -> None:
        seen = seen_message(message, self._me().id)
        self.memory.saw(seen)
        if seen.is_dm:
            self._remember_direct(message.channel.id)
        if seen.is_own:
            return
        seen = await self.lookups.with_thread(message, seen)
        seen = await self.lookups.with_roles(message, seen)
        if self.journal.decision(seen.id) is None:
            self._decide(message, seen)

    async def on_raw_message_edit(self, payload: discord.RawMessageUpdateEvent) -> None:
        self.memory.saw(seen_message(payload.message, self._me().id))

    async def on_raw_message_delete(self, payload: discord.RawMessageDeleteEvent) -> None:
        await self._gone(payload.channel_id, [payload.message_id])

    async def on_raw_bulk_message_delete(self, payload: discord.RawBulkMessageDeleteEvent) -> None:
        await self._gone(payload.channel_id, payload.message_ids)

    async def on_guild_channel_delete(self, channel: discord.abc.GuildChannel) -> None:
        self._forget_channel(channel.id)

    async def on_guild_channel_update(
        self, _before: discord.abc.GuildChannel, after: discord.abc.GuildChannel
    ) -> None:
        self._forget_what_is_closed(after.guild)

    async def on_guild_role_update(self, _before: discord.Role, after: discord.Role) -> None:
        self._forget_what_is_closed(after.guild)

    async def on_member_update(self, _before: discord.Member, after: discord.Member) -> None:
        """Without the members' intent only of the bot itself: its roles or its nickname."""
        self.manners.be_called(self.names())
        self._forget_what_is_closed(after.guild)

    async def on_raw_thread_delete(self, payload: discord.RawThreadDeleteEvent) -> None:
        self._forget_channel(payload.thread_id)

    async def on_guild_remove(self, guild: discord.Guild) -> None:
        for channel in _channels_of(guild):
            self._forget_channel(channel.id)

    # What else it does ----------------------------------------------------------------------

    async def connect(self, *, reconnect: bool = True) -> None:
        """Also where Discord lets nobody in at first.

        discord.py tries again by itself, but stumbles over the connection that it never had.
        """
        pauses = FIRST_CONNECTION_SECONDS
        for attempt, seconds in enumerate(itertools.chain(pauses, itertools.repeat(pauses[-1]))):
            try:
                await super().connect(reconnect=reconnect)
                return
            except AttributeError as error:
                if (error.obj, error.name) != (None, "sequence"):
                    raise
            if attempt == 0:
                log.warning("Discord's gateway cannot be reached; trying again until it can")
            await asyncio.sleep(seconds)

    def names(self) -> set[str]:
        """What people call it: the voice's name, its own in Discord, its nicknames."""
        if not self.settings.answer_to_name:
            return set()
        user, voice = self._me(), self.backend.voice
        members = [guild.me for guild in self.guilds if guild.me is not None]
        nicknames = {member.nick for member in members if member.nick}
        # Nobody chose the default, and people talk about bots.
        chosen = {voice.name} - {DEFAULT_BOT_NAME}
        return {user.name, user.display_name} | chosen | nicknames

    def is_owner(self, user_id: int) -> bool:
        return str(user_id) in self.rules.owners

    async def objection_to_command(self, interaction: discord.Interaction[Any]) -> str | None:
        """The list that speaks against a command; owners may use theirs anywhere."""
        user = interaction.user
        if self.is_owner(user.id):
            return None
        place = interaction.channel or discord.Object(interaction.channel_id or 0)
        roles = await self.lookups.roles_of(user, interaction.guild)
        return self.rules.objection_to_place(
            places_of(place), is_dm=interaction.guild_id is None
        ) or self.rules.objection_to_user(str(user.id), roles)

    async def reload(self, folder: Path) -> None:
        """Speak with another adapter from now on. Raises UserError; the old one stays."""
        await self.backend.reload(folder)
        self.adapter = folder
        self.memory.voice = self.backend.voice
        self.journal.forget(lambda _: True)  # their prompts were another adapter's
        self.manners.be_called(self.names())

    async def finish_answers(self, seconds: float = FINISH_SECONDS) -> None:
        """Let open answers and commands come to their end; nothing new is taken up."""
        if hasattr(self, "answering"):
            await asyncio.gather(self.answering.finish(seconds), self.commands.tree.finish(seconds))

    async def close(self) -> None:
        """Leave Discord. What is still open is cut off: it could no longer say anything."""
        if not self.is_closed():
            await self.finish_answers(0)
        await super().close()

    def _me(self) -> discord.ClientUser:
        if self.user is None:
            raise RuntimeError("not logged in")
        return self.user

    def _owners_by_discord(self) -> frozenset[str]:
        """Without BOT_OWNERS: whoever made the application, alone or as a team."""
        application = self.application
        if application is None:
            return frozenset()
        if application.team is None:
            return frozenset({str(application.owner.id)})
        owners = {it.id for it in application.team.members if _may_change_the_application(it)}
        return frozenset(str(it) for it in owners | {application.team.owner_id} if it)

    def _forget_what_is_closed(self, guild: discord.Guild) -> None:
        for channel in _channels_of(guild):
            if not channel.permissions_for(guild.me).view_channel:
                self._forget_channel(channel.id)

    def _forget_channel(self, channel_id: int) -> None:
        place = str(channel_id)
        self.memory.forget_channel(place)
        self.journal.forget(lambda it: it.channel_id == place)
        self.history.forget(channel_id)

    def _remember_direct(self, channel_id: int) -> None:
        self._direct[channel_id] = None
        self._direct.move_to_end(channel_id)
        while len(self._direct) > DIRECT_CHANNELS:
            self._direct.popitem(last=False)

    async def _catch_up(self) -> None:
        self.history.begin_anew()
        self.lookups.forget_names()
        await self.history.look_through([*self._open_channels(), *await self._direct_channels()])

    def _open_channels(self) -> Iterable[Any]:
        """Channels and threads in which the bot can read and answer, and may."""
        for guild in self.guilds:
            for channel in _channels_of(guild):
                can = channel.permissions_for(guild.me)
                if not (can.read_message_history and can.view_channel):
                    continue
                if not isinstance(channel, discord.abc.Messageable):
                    continue
                if not self.rules.objection_to_place(places_of(channel)):
                    yield channel

    async def _direct_channels(self) -> list[Any]:
        found = []
        for channel_id in list(self._direct):
            try:
                found.append(await self.fetch_channel(channel_id))
            except (*FAILED_REQUEST, discord.InvalidData):
                log.warning("the direct channel %s cannot be looked into", channel_id)
        return found

    async def _take_up_missed(
        self, message: discord.Message, seen: SeenMessage, has_hourglass: bool
    ) -> bool:
        """Answer what was said to the bot while it could not hear it."""
        seen = await self.lookups.with_thread(message, seen)
        if self.manners.how_addressed(seen) is None:
            return False
        seen = await self.lookups.with_roles(message, seen)
        if self.journal.decision(seen.id) is not None:
            return False  # it came in over the gateway meanwhile
        return self._decide(message, seen, has_hourglass)

    def _decide(
        self, message: discord.Message, seen: SeenMessage, has_hourglass: bool = False
    ) -> bool:
        decision = self.manners.hear(seen)
        self.journal.decided(seen, decision)
        if decision.speaks:
            log.info("%s in channel %s: %s", seen.id, seen.channel_id, decision)
            self.answering.take(Question(message, seen, decision, has_hourglass))
        elif decision.acknowledge:
            self.answering.acknowledge(message)
        return decision.speaks

    async def _gone(self, channel_id: int, message_ids: Iterable[int]) -> None:
        """Deleted messages. A question whose answer was deleted is not answered again later."""
        place, gone = str(channel_id), set(map(str, message_ids))
        self.journal.forget(lambda it: it.id in gone)
        for message_id in gone:
            question_id = self.memory.replied_to(place, message_id)
            self.memory.deleted(place, [message_id])
            if question_id is None or self.memory.answers_to(place, question_id):
                continue
            channel: Any = self.get_channel(channel_id)
            if channel is not None and self.memory.knows(place, question_id):
                try:
                    await channel.get_partial_message(int(question_id)).add_reaction(HEARD_SIGN)
                except FAILED_REQUEST:
                    log.info("%s cannot be marked as answered", question_id)


def _may_change_the_application(member: discord.TeamMember) -> bool:
    """Not whoever was only invited to the team, or may only look at it."""
    has_joined = member.membership_state is discord.TeamMembershipState.accepted
    return has_joined and member.role in {
        discord.TeamMemberRole.admin,
        discord.TeamMemberRole.developer,
    }


def _channels_of(guild: discord.Guild) -> list[Any]:
    """Its channels and those threads of which discord.py knows where they belong."""
    return [*guild.channels, *(it for it in guild.threads if it.parent is not None)]
