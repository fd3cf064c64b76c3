"""What a message does not tell, and Discord has to be asked for.

    names     history sends accounts, without their names and roles in the server
    roles     a direct message comes from no server, and some lists are about roles
    threads   one that a member opens below a message of the bot's belongs to that member

Where Discord does not say, the account's name stays, and nobody is given a right.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace

import discord

from discord_lora.discord_bot.channel_memory import ChannelMemory
from discord_lora.discord_bot.delivery import FAILED_REQUEST, may_pass
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.discord_bot.speak_rules import SpeakRules
from discord_lora.discord_bot.when_to_speak import forget_the_oldest

log = logging.getLogger(__name__)
Account = discord.User | discord.Member

IDS_AT_ONCE = 100
"""Members that one question to the gateway may be about."""

SECONDS_FOR_NAMES = 5.0
"""A history is read without nicknames rather than late."""

_NO_MEMBERS = (discord.DiscordException, OSError, RuntimeError)


class Lookups:
    """Asks Discord, and remembers what it said."""

    def __init__(self, client: discord.Client, memory: ChannelMemory, rules: SpeakRules) -> None:
        self._client = client
        self._memory = memory
        self._rules = rules
        self._own_threads: OrderedDict[int, bool] = OrderedDict()
        self._members: OrderedDict[tuple[int, int], discord.Member | None] = OrderedDict()
        self._without_names: set[int] = set()

    async def with_thread(self, message: discord.Message, seen: SeenMessage) -> SeenMessage:
        """The same message; its thread is the bot's own also below a message of the bot's."""
        channel = message.channel
        if seen.in_own_thread or not isinstance(channel, discord.Thread):
            return seen
        return replace(seen, in_own_thread=await self._is_below_own_message(channel))

    async def with_roles(self, message: discord.Message, seen: SeenMessage) -> SeenMessage:
        """The same message with the roles of its author, where lists are about roles."""
        if seen.role_ids is not None:
            return seen
        return replace(seen, role_ids=await self.roles_of(message.author, message.guild))

    async def roles_of(self, user: Account, guild: discord.Guild | None) -> frozenset[str] | None:
        """Ids of their roles; in a direct message of those that the lists name, in all servers.

        None where Discord does not say, or no list is about roles.
        """
        if isinstance(user, discord.Member):
            return frozenset(str(role.id) for role in user.roles)
        wanted = self._rules.allowed_roles | self._rules.blocked_roles
        if not wanted:
            return None
        everywhere = [it for it in self._client.guilds if any(it.get_role(int(r)) for r in wanted)]
        try:
            found = [await _member(it, user.id) for it in ([guild] if guild else everywhere)]
        except FAILED_REQUEST as error:
            log.warning("the roles of %s are not known: %s", user.id, error)
            return None
        return frozenset(str(role.id) for it in found if it is not None for role in it.roles)

    # Threads --------------------------------------------------------------------------------

    async def _is_below_own_message(self, thread: discord.Thread) -> bool:
        """Whether the message that the thread hangs below, which has its id, is the bot's."""
        if thread.id not in self._own_threads:
            author_id = self._memory.author_of(str(thread.parent_id), str(thread.id))
            try:
                author_id = author_id or await _author_of_starter(thread)
            except FAILED_REQUEST as error:
                log.warning("what thread %s hangs below is not known: %s", thread.id, error)
                if may_pass(error):
                    return False
            self._own_threads[thread.id] = author_id == self._memory.bot_id
            forget_the_oldest(self._own_threads)
        return self._own_threads[thread.id]

    # Names ----------------------------------------------------------------------------------

    def forget_names(self) -> None:
        """Nobody says when a nickname changes: ask again from now on."""
        self._members.clear()
        self._without_names.clear()

    async def name(self, messages: Sequence[discord.Message]) -> None:
        """Put members in the place of the accounts that history sends."""
        guild = messages[0].guild if messages else None
        if guild is None:
            return
        people: list[Account] = []
        for message in messages:
            people += message.mentions
            if message.webhook_id is None:
                people.append(message.author)
        strangers = {it.id for it in people if not isinstance(it, discord.Member)}
        await self._meet(guild, [it for it in strangers if (guild.id, it) not in self._members])
        for message in messages:
            message.author = self._member_for(guild, message.author)
            message.mentions = [self._member_for(guild, it) for it in message.mentions]

    async def _meet(self, guild: discord.Guild, user_ids: Sequence[int]) -> None:
        for start in range(0, len(user_ids), IDS_AT_ONCE):
            if guild.id in self._without_names:
                return
            some = list(user_ids[start : start + IDS_AT_ONCE])
            try:
                async with asyncio.timeout(SECONDS_FOR_NAMES):
                    # discord.py's own cache would never hear of a change.
                    found = await guild.query_members(user_ids=some, limit=IDS_AT_ONCE, cache=False)
            except _NO_MEMBERS as error:
                log.warning("no nicknames from server %s: %r", guild.id, error)
                self._without_names.add(guild.id)
                return
            members = {it.id: it for it in found}
            self._members |= {(guild.id, user_id): members.get(user_id) for user_id in some}
            forget_the_oldest(self._members)

    def _member_for(self, guild: discord.Guild, account: Account) -> Account:
        return self._members.get((guild.id, account.id)) or account


async def _author_of_starter(thread: discord.Thread) -> str | None:
    parent = thread.parent
    if not isinstance(parent, discord.TextChannel):
        return None  # a forum's posts begin inside
    try:
        return str((await parent.fetch_message(thread.id)).author.id)
    except discord.NotFound:
        return None


async def _member(guild: discord.Guild, user_id: int) -> discord.Member | None:
    try:
        return await guild.fetch_member(user_id)
    except discord.NotFound:
        return None
