"""Slash commands and the entries of a message's menu.

Everybody:            /status /persona /reset /optout /optin
Moderators, owners:   /quiet /wake
Owners:               /settings /why /reload
Owners, who was answered:   Regenerate, Delete
"""

import io
import logging
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import discord
from discord import app_commands

from discord_lora.adapter_folder import find_adapter
from discord_lora.console import UserError
from discord_lora.discord_bot.channel_memory import RESET_NOTICE
from discord_lora.discord_bot.command_tree import Interaction, Tree, tell
from discord_lora.discord_bot.delivery import FAILED_REQUEST, Withdrawn
from discord_lora.discord_bot.from_discord import places_of, seen_message
from discord_lora.discord_bot.journal import AnswerRecord
from discord_lora.discord_bot.reading import is_of
from discord_lora.discord_bot.reply_messages import MESSAGE_LIMIT, length
from discord_lora.discord_bot.start_up import without_secrets
from discord_lora.inference.backend import Busy, GenerationFailed, TooSlow

if TYPE_CHECKING:
    from discord_lora.discord_bot.client import BotClient

log = logging.getLogger(__name__)

OWNERS_ONLY = "Only the bot's owners may do that."
MODERATORS_ONLY = "Only the bot's owners and members who may manage messages may do that."
NOT_MINE = "That is not a message of mine."
NOT_YOURS = "Only the bot's owners and whoever was answered may do that."
_IN_AGAIN = (
    "From now on I read what you write, and the next training takes it. What you wrote before and "
    "in between counts again, too, as far as it still stands in the channels: delete what should "
    "stay out."
)
PROMPT_IS_GONE = (
    "The prompt is no longer kept: something in it was deleted or forgotten, or it was another "
    "adapter's."
)
QUESTION_IS_GONE = "What that answered was deleted or forgotten: there is nothing to answer."
_LAST_ID = re.compile(r"(\d{15,20})/?\s*$")


class Commands:
    """All of them, for one client."""

    def __init__(self, client: "BotClient") -> None:
        self.client = client
        self.tree = Tree(client)
        for name, description, callback in (
            ("status", "Which model speaks, since when, and how busy it is", self.status),
            ("persona", "Whom the bot speaks as", self.persona),
            ("reset", "Forget this channel's conversation from here", self.reset),
            ("optout", "The bot no longer reads or learns from your messages", self.optout),
            ("optin", "The bot may read and learn from your messages again", self.optin),
            ("quiet", "Let the bot be silent here", self.quiet),
            ("wake", "Let the bot speak again", self.wake),
            ("settings", "See or change how the bot writes, until it starts again", self.settings),
            ("why", "Why the bot answered or not, and the exact prompt", self.why),
            ("reload", "Load the adapter anew, or another one", self.reload),
        ):
            command: Any = callback
            self.tree.add_command(
                app_commands.Command(name=name, description=description, callback=command)
            )
        for name, entry in (("Regenerate", self.regenerate), ("Delete", self.delete)):
            self.tree.add_command(app_commands.ContextMenu(name=name, callback=entry))

    async def register(self) -> None:
        """Tell Discord what there is. Without it the bot still talks."""
        try:
            await self.tree.sync()
        except (*FAILED_REQUEST, app_commands.CommandSyncFailure) as error:
            log.warning("Discord did not take the commands: %s", error)

    # Everybody ------------------------------------------------------------------------------

    async def status(self, interaction: Interaction) -> None:
        client, status = self.client, self.client.backend.status()
        waiting = status.waiting + client.answering.waiting
        up = timedelta(seconds=int((client.clock() - client.started).total_seconds()))
        memory = f", {status.memory_bytes / 1e9:.1f} GB in use" if status.memory_bytes else ""
        lines = (
            f"{client.backend.voice.name}, adapter {status.adapter or 'none'}",
            f"model {status.model} on {status.name}{memory}",
            f"up {up}, {status.replies:,} answers, {status.tokens_per_second:.1f} tokens/s",
            f"{status.running} being written, {waiting} waiting",
            f"{len(client.guilds)} servers",
        )
        is_quiet = client.manners.is_quiet(places_of(interaction.channel))
        quiet = ("told to be quiet here",) if is_quiet else ()
        await tell(interaction, "\n".join(lines + quiet))

    async def persona(self, interaction: Interaction) -> None:
        voice, adapter = self.client.backend.voice, self.client.adapter.name
        if voice.kind == "persona":
            text = f"I speak as {voice.name}. The adapter {adapter} has learned that one voice."
        else:
            text = f"I speak as {voice.name}, in the voice of all in the adapter {adapter}."
        await tell(interaction, f"{text} Owners change it with /reload and another adapter.")

    async def reset(self, interaction: Interaction) -> None:
        # At once: an answer that is being written may be done before the notice has come in, which
        # draws the line after a restart.
        channel_id = str(interaction.channel_id)
        self.client.memory.forget(channel_id, str(interaction.id))
        self.client.journal.forget(
            lambda it: it.channel_id == channel_id and int(it.id) <= interaction.id
        )
        await interaction.response.send_message(RESET_NOTICE)

    async def optout(self, interaction: Interaction) -> None:
        user_id = str(interaction.user.id)
        is_new = self.client.ledger.opt_out(user_id, self.client.clock())
        self.client.memory.forget_author(user_id)
        self.client.answering.forget_author(user_id)
        self.client.journal.forget(lambda it: is_of(user_id, it))
        said = "I no longer read what you write" if is_new else "You were out already"
        await tell(
            interaction,
            f"{said}, and the next training leaves it out. /optin takes it back.",
        )

    async def optin(self, interaction: Interaction) -> None:
        is_new = self.client.ledger.opt_in(str(interaction.user.id))
        await tell(interaction, _IN_AGAIN if is_new else "You had not opted out.")

    # Moderators -----------------------------------------------------------------------------

    @app_commands.describe(
        minutes="For how long; without it, until /wake", everywhere="In all channels (owners)"
    )
    async def quiet(
        self,
        interaction: Interaction,
        minutes: app_commands.Range[int, 1, 10080] | None = None,
        everywhere: bool = False,
    ) -> None:
        if not await self._may_moderate(interaction, everywhere=everywhere):
            return
        until = self.client.clock() + timedelta(minutes=minutes) if minutes else None
        place = None if everywhere else str(interaction.channel_id)
        self.client.manners.quiet(place, until)
        how_long = f"for {minutes} minutes" if minutes else "until /wake"
        await tell(interaction, f"Quiet {'everywhere' if everywhere else 'here'} {how_long}.")

    @app_commands.describe(everywhere="In all channels (owners)")
    async def wake(self, interaction: Interaction, everywhere: bool = False) -> None:
        if not await self._may_moderate(interaction, everywhere=everywhere):
            return
        manners = self.client.manners
        manners.wake(None if everywhere else str(interaction.channel_id))
        if manners.is_quiet():
            text = "Still quiet everywhere: use everywhere."
        elif manners.is_quiet(places_of(interaction.channel)):
            text = "Still quiet in the whole channel: use /wake there."
        else:
            text = "Awake."
        await tell(interaction, text)

    async def _may_moderate(self, interaction: Interaction, *, everywhere: bool) -> bool:
        if self.client.is_owner(interaction.user.id):
            return True
        if everywhere:
            await tell(interaction, OWNERS_ONLY)
            return False
        if interaction.guild_id is None or interaction.permissions.manage_messages:
            return True
        await tell(interaction, MODERATORS_ONLY)
        return False

    # Owners ---------------------------------------------------------------------------------

    async def _is_owner(self, interaction: Interaction) -> bool:
        if self.client.is_owner(interaction.user.id):
            return True
        await tell(interaction, OWNERS_ONLY)
        return False

    @app_commands.describe(
        temperature="How freely it picks words; 0: always the likeliest",
        top_p="Pick among the words of this total likelihood",
        min_p="Ignore words this much less likely than the best",
        repetition_penalty="Above 1: say again less",
        max_reply_tokens="Longest answer in tokens",
        reply_style="How answers appear",
    )
    async def settings(
        self,
        interaction: Interaction,
        temperature: app_commands.Range[float, 0.0, 5.0] | None = None,
        top_p: app_commands.Range[float, 0.01, 1.0] | None = None,
        min_p: app_commands.Range[float, 0.0, 0.99] | None = None,
        repetition_penalty: app_commands.Range[float, 1.0, 2.0] | None = None,
        max_reply_tokens: app_commands.Range[int, 1, 4000] | None = None,
        reply_style: Literal["person", "stream", "plain"] | None = None,
    ) -> None:
        if not await self._is_owner(interaction):
            return
        self.client.manner.change(
            reply_style=reply_style,
            temperature=temperature,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            max_reply_tokens=max_reply_tokens,
        )
        await tell(interaction, f"Until the next start:\n{self.client.manner}")

    @app_commands.describe(message="Link or id of a message; without it, the last answer here")
    async def why(self, interaction: Interaction, message: str = "") -> None:
        if not await self._is_owner(interaction):
            return
        journal = self.client.journal
        if message:
            match = _LAST_ID.search(message)
            if match is None:
                await tell(interaction, "That is no link and no id of a message.")
                return
            record, decision = journal.answer(match[1]), journal.decision(match[1])
        else:
            record, decision = journal.last_answer(str(interaction.channel_id)), None
        decision = record.decision if record else decision
        if decision is None:
            await tell(interaction, "I remember nothing about that.")
            return
        await self._show_reason(interaction, f"{decision}.", record)

    async def _show_reason(
        self, interaction: Interaction, reason: str, record: AnswerRecord | None
    ) -> None:
        if record is None or record.conversation is None:
            await tell(interaction, reason if record is None else f"{reason} {PROMPT_IS_GONE}")
            return
        prompt = self.client.backend.prompt_text(record.conversation)
        prompt = without_secrets(prompt, self.client.settings)
        whole = f"{reason} The prompt:\n```\n{prompt}\n```"
        if length(whole) <= MESSAGE_LIMIT and "```" not in prompt:
            await tell(interaction, whole)
            return
        file = discord.File(io.BytesIO(prompt.encode()), "prompt.txt")
        text = f"{reason} The prompt is in the file."
        await interaction.response.send_message(text, file=file, ephemeral=True)

    @app_commands.describe(adapter="Folder below adapters/; without it, the newest")
    async def reload(self, interaction: Interaction, adapter: str = "") -> None:
        if not await self._is_owner(interaction):
            return
        await interaction.response.defer(ephemeral=True, thinking=True)
        settings = self.client.settings
        # A plain name: nobody reaches another place of this computer from Discord.
        if adapter and not re.fullmatch(r"[\w.+-]+", adapter):
            raise UserError("That is no name of a folder below adapters/.")
        folder = (
            find_adapter(settings.output_dir, str(settings.output_dir / adapter))
            if adapter
            else find_adapter(settings.output_dir)
        )
        await self.client.reload(folder)
        await tell(interaction, f"I speak as {self.client.backend.voice.name} ({folder.name}).")

    # The menu of a message ------------------------------------------------------------------

    async def regenerate(self, interaction: Interaction, message: discord.Message) -> None:
        record = await self._answer_of(message)
        if not await self._may_change(interaction, message, record):
            return
        if record is None:
            await tell(interaction, "I no longer know what that answered.")
            return
        if objection := self._objection_to_another(interaction, message):
            await tell(interaction, f"Not now: {objection}.")
            return
        await interaction.response.defer(ephemeral=True, thinking=True)
        channel: Any = message.channel
        try:
            is_new = await self.client.answering.regenerate(record, channel)
        except Busy:
            await tell(interaction, "There is no room just now; try again in a moment.")
        except Withdrawn:
            await tell(interaction, QUESTION_IS_GONE)
        except (TooSlow, GenerationFailed):
            await tell(interaction, "It did not work out. The old answer stays.")
        else:
            await tell(interaction, "Written anew." if is_new else "Nothing else came to mind.")

    async def delete(self, interaction: Interaction, message: discord.Message) -> None:
        if await self._may_change(interaction, message, await self._answer_of(message)):
            await message.delete()
            await tell(interaction, "Deleted.")

    def _objection_to_another(
        self, interaction: Interaction, message: discord.Message
    ) -> str | None:
        client, user = self.client, interaction.user
        if client.is_owner(user.id):
            return None
        answer = seen_message(message, message.author.id)
        return client.manners.objection_to_another(answer, str(user.id))

    async def _answer_of(self, message: discord.Message) -> AnswerRecord | None:
        known = self.client.journal.answer(str(message.id))
        if known is None:  # from before the start, and the channel may not have been read yet
            await self.client.history.restore(message.channel)
        return known or self.client.writer.record_of(message)

    async def _may_change(
        self, interaction: Interaction, message: discord.Message, record: AnswerRecord | None
    ) -> bool:
        client, user_id = self.client, interaction.user.id
        if client.user is None or message.author.id != client.user.id:
            await tell(interaction, NOT_MINE)
            return False
        is_theirs = record is not None and record.author_id == str(user_id)
        if client.is_owner(user_id) or is_theirs:
            return True
        await tell(interaction, NOT_YOURS)
        return False
