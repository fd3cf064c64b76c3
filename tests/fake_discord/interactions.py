"""An interaction, and the routes over which the bot answers it."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from fake_discord.channels import (
    COMMAND_ANSWER,
    EPHEMERAL,
    LOADING,
    MENU_ANSWER,
    REPLY,
    Channel,
    Message,
)
from fake_discord.faults import ApiError, invalid_form
from fake_discord.mentions import mentions_of
from fake_discord.people import Bot, User
from fake_discord.rest import NO_CONTENT, Call, route
from fake_discord.routes import message_fields
from fake_discord.world import SECONDS_TO_WAIT

Json = dict[str, Any]
COMMAND, COMPONENT, AUTOCOMPLETE = 2, 3, 4
SLASH, USER_MENU, MESSAGE_MENU = 1, 2, 3
SEND, DEFER, DEFER_UPDATE, UPDATE, CHOICES, MODAL = 4, 5, 6, 7, 8, 9
SECONDS_TO_ACKNOWLEDGE = 3.0


@dataclass(eq=False)
class Interaction:
    """One use of a command, a menu entry or a button, and what became of it."""

    id: int
    kind: int
    bot: Bot
    user: User
    channel: Channel
    data: Json
    # For a component: the message on which it was used.
    message: Message | None = None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)
    at: float = field(default_factory=time.monotonic)
    # The bot's first answer: its kind (SEND, DEFER, ...), its data, and when it came.
    response_kind: int | None = None
    response: Json = field(default_factory=dict)
    responded_at: float | None = None
    # The message that the first answer made, or promised by deferring.
    answer: Message | None = None
    followups: list[Message] = field(default_factory=list)

    @property
    def is_deferred(self) -> bool:
        return self.response_kind in (DEFER, DEFER_UPDATE)

    @property
    def is_ephemeral(self) -> bool:
        return bool(self.response.get("flags", 0) & EPHEMERAL)

    def wait_for_response(self, timeout: float = SECONDS_TO_WAIT) -> Interaction:
        """Until the bot has acknowledged, in whatever way."""
        what = f"an answer to {self.data.get('name') or self.data.get('custom_id')}"
        world = self.channel.world
        world.wait_until(lambda: self.response_kind is not None, timeout, what)
        return self

    def wait_for_answer(self, timeout: float = SECONDS_TO_WAIT) -> Message:
        """The message of the answer, once it no longer says that the bot is thinking."""

        def answered() -> Message | None:
            ready = self.answer is not None and not self.answer.flags & LOADING
            return self.answer if ready else None

        name = self.data.get("name") or self.data.get("custom_id")
        found = self.channel.world.wait_until(answered, timeout, f"an answer to {name}")
        assert found is not None
        return found


@route("PUT", "/applications/{application}/commands")
@route("PUT", "/applications/{application}/guilds/{guild}/commands")
def set_commands(call: Call) -> list[Json]:
    """Replace all commands of a guild, or the global ones; a name keeps its id."""
    place = int(call.path["guild"]) if "guild" in call.path else None
    if place is not None and call.bot.id not in call.world.guilds[place].members:
        raise ApiError(403, 50001, "Missing Access")
    old = {(it["name"], it["type"]): it["id"] for it in call.bot.commands.get(place, [])}
    commands = []
    for index, sent in enumerate(call.body):
        kind = sent.get("type", SLASH)
        check_command(index, sent, kind)
        known = old.get((sent["name"], kind)) or str(call.world.new_id())
        whole: Json = {"description": "", **sent, "type": kind, "id": known}
        whole |= {"application_id": str(call.bot.id), "version": "1"}
        if place is not None:
            whole["guild_id"] = str(place)
        commands.append(whole)
    call.bot.commands[place] = commands
    call.world.tell()
    return commands


def check_command(index: int, command: Json, kind: int) -> None:
    name, description = command.get("name", ""), command.get("description") or ""
    if not 1 <= len(name) <= 32 or (kind == SLASH and (name != name.lower() or " " in name)):
        raise invalid_form(str(index), "APPLICATION_COMMAND_INVALID_NAME", f"name {name!r}")
    if kind == SLASH and not 1 <= len(description) <= 100:
        raise invalid_form(str(index), "BASE_TYPE_BAD_LENGTH", f"description of {name!r}")


@route("GET", "/applications/{application}/commands")
@route("GET", "/applications/{application}/guilds/{guild}/commands")
def get_commands(call: Call) -> list[Json]:
    return call.bot.commands.get(int(call.path["guild"]) if "guild" in call.path else None, [])


@route("POST", "/interactions/{interaction}/{token}/callback", token=False)
def respond(call: Call) -> Json:
    """The first answer. It comes within three seconds or never, and once."""
    it = call.world.interactions.get(call.path["token"])
    if it is None or str(it.id) != call.path["interaction"] or is_late(it):
        raise ApiError(404, 10062, "Unknown interaction")
    if it.response_kind is not None:
        raise ApiError(400, 40060, "Interaction has already been acknowledged.")
    kind, data = call.body["type"], call.body.get("data") or {}
    inner = inside(call, it, data)
    if kind == SEND:
        it.answer = post_answer(inner, it, message_fields(inner))
    elif kind == DEFER:
        flags = data.get("flags", 0) & EPHEMERAL | LOADING
        it.answer = post_answer(inner, it, {"content": "", "flags": flags})
    elif kind in (UPDATE, DEFER_UPDATE) and it.message is not None:
        it.answer = it.message
        if kind == UPDATE:
            it.message.edit(**message_fields(inner, it.message))
    it.response_kind, it.response, it.responded_at = kind, data, time.monotonic()
    call.world.tell()
    return callback_answer(it, inner)


def is_late(it: Interaction) -> bool:
    return it.response_kind is None and time.monotonic() - it.at > SECONDS_TO_ACKNOWLEDGE


def callback_answer(it: Interaction, call: Call) -> Json:
    about: Json = {"id": str(it.id), "type": it.kind}
    resource: Json = {"type": it.response_kind}
    if it.answer is not None:
        about |= {
            "response_message_id": str(it.answer.id),
            "response_message_loading": bool(it.answer.flags & LOADING),
            "response_message_ephemeral": it.answer.is_ephemeral,
        }
        if it.response_kind in (SEND, UPDATE):
            resource["message"] = call.shown(it.answer)
    return {"interaction": about, "resource": resource}


@route("POST", "/webhooks/{application}/{token}", token=False)
def follow_up(call: Call) -> Json:
    """A further message. After deferring, the first one fills the place that was promised."""
    it = answered(call)
    inner = inside(call, it, call.body)
    if it.answer is not None and it.answer.flags & LOADING:
        return fill(inner, it.answer)
    message = post_answer(inner, it, message_fields(inner))
    # It hangs on the first answer, as a reply does.
    message.kind, message.reply_to = REPLY, it.answer
    it.followups.append(message)
    call.world.tell()
    return inner.shown(message)


@route("GET", "/webhooks/{application}/{token}/messages/{message}", token=False)
def get_answer(call: Call) -> Json:
    it = answered(call)
    return inside(call, it, {}).shown(own_message(call, it))


@route("PATCH", "/webhooks/{application}/{token}/messages/{message}", token=False)
def edit_answer(call: Call) -> Json:
    it = answered(call)
    return fill(inside(call, it, call.body), own_message(call, it))


@route("DELETE", "/webhooks/{application}/{token}/messages/{message}", token=False)
def delete_answer(call: Call) -> object:
    own_message(call, answered(call)).delete()
    return NO_CONTENT


def answered(call: Call) -> Interaction:
    it = call.world.interactions.get(call.path["token"])
    if it is None or it.response_kind is None:
        raise ApiError(404, 10015, "Unknown Webhook")
    return it


def own_message(call: Call, it: Interaction) -> Message:
    wanted = call.path["message"]
    for message in [it.answer, *it.followups]:
        is_wanted = wanted == "@original" and message is it.answer
        if message is None or message.deleted_at is not None:
            continue
        if is_wanted or str(message.id) == wanted:
            return message
    raise ApiError(404, 10008, "Unknown Message")


def inside(call: Call, it: Interaction, body: Json) -> Call:
    """The same call in the name of the bot, whom the address has named, with the inner body."""
    return Call(call.world, call.path, call.query, body, call.files, call.gateway_url, it.bot)


def post_answer(call: Call, it: Interaction, fields: Json) -> Message:
    content = fields.pop("content", "")
    found = mentions_of(it.channel, it.bot, content, fields.get("allowed_mentions"))
    kind = MENU_ANSWER if it.data.get("type") in (USER_MENU, MESSAGE_MENU) else COMMAND_ANSWER
    return it.channel.post(it.bot, content, found, kind=kind, interaction=it, **fields)


def fill(call: Call, message: Message) -> Json:
    fields = message_fields(call, message)
    # Whether it is ephemeral was settled by the first answer.
    fields["flags"] = message.flags & ~LOADING
    message.edit(**fields)
    return call.shown(message)
