"""A message that is to be answered, and the signs that the bot puts on messages."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

import discord

from discord_lora.discord_bot.delivery import FAILED_REQUEST
from discord_lora.discord_bot.seen_message import SeenMessage
from discord_lora.discord_bot.signs import BUSY_SIGN
from discord_lora.discord_bot.when_to_speak import Answer, Decision


@dataclass(eq=False, slots=True)
class Question:
    """A message that is to be answered."""

    message: discord.Message
    seen: SeenMessage
    decision: Decision
    has_hourglass: bool = False
    sign: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Putting the hourglass on and taking it off go one after the other."""

    @property
    def addressed(self) -> bool:
        return self.decision.answer is Answer.ADDRESSED

    async def put_hourglass_on(self) -> None:
        async with self.sign:
            if not self.has_hourglass:
                self.has_hourglass = True
                await react(self.message, BUSY_SIGN)

    async def take_hourglass_off(self, user: discord.ClientUser) -> None:
        async with self.sign:
            if self.has_hourglass:
                self.has_hourglass = False
                with suppress(*FAILED_REQUEST):
                    await self.message.remove_reaction(BUSY_SIGN, user)


async def react(message: discord.Message, sign: str) -> None:
    """Put a sign on a message, if Discord takes it."""
    with suppress(*FAILED_REQUEST):
        await message.add_reaction(sign)
