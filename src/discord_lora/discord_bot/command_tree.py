"""Who may use commands at all, which of them are open, and how they are answered."""

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import discord
from discord import app_commands

from discord_lora.console import UserError
from discord_lora.discord_bot.answering import let_end
from discord_lora.discord_bot.delivery import FAILED_REQUEST

if TYPE_CHECKING:
    from discord_lora.discord_bot.client import BotClient

log = logging.getLogger(__name__)
Interaction = discord.Interaction[Any]

LEAVING = "I am about to leave."
NOT_ALLOWED = "I take no commands from you here."
WENT_WRONG = "Something went wrong. The reason is in the bot's log."
FOR_ALL_EVERYWHERE = frozenset({"optout", "optin"})
"""Whoever wants to be left alone may say so, whatever the lists say."""


class Tree(app_commands.CommandTree[Any]):
    """Knows which commands are open, and says what went wrong to whoever used one."""

    def __init__(self, client: "BotClient") -> None:
        super().__init__(client)
        self._objection = client.objection_to_command
        self._open: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def interaction_check(self, interaction: Interaction, /) -> bool:
        """discord.py asks this first, in the task that the command then runs in."""
        if self._closing:
            await tell(interaction, LEAVING)
            return False
        task = asyncio.current_task()
        if task is not None:
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        data: Any = interaction.data or {}
        if data.get("name") in FOR_ALL_EVERYWHERE or await self._objection(interaction) is None:
            return True
        await tell(interaction, NOT_ALLOWED)
        return False

    async def finish(self, seconds: float) -> None:
        """Take nothing new and let what is open come to its end, for so long."""
        self._closing = True
        await let_end(self._open, seconds)

    async def on_error(
        self, interaction: Interaction, error: app_commands.AppCommandError, /
    ) -> None:
        cause = getattr(error, "original", error)
        if isinstance(cause, UserError):
            await tell(interaction, str(cause))
            return
        log.error("a command failed", exc_info=cause)
        await tell(interaction, WENT_WRONG)


async def tell(interaction: Interaction, text: str, *, public: bool = False) -> None:
    """Answer a command, also one that was deferred."""
    try:
        if interaction.response.is_done():
            await interaction.followup.send(text, ephemeral=not public)
        else:
            await interaction.response.send_message(text, ephemeral=not public)
    except FAILED_REQUEST as error:
        log.warning("a command's answer was not taken: %s", error)
