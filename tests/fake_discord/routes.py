"""The routes for users, channels, messages and threads: Discord's rules and refusals."""

from __future__ import annotations

import time
from typing import Any

from fake_discord import payloads
from fake_discord.channels import DIRECT, REPLY, TEXT, Channel, Message
from fake_discord.faults import ApiError, invalid_form
from fake_discord.mentions import mentions_of
from fake_discord.people import Bot, User
from fake_discord.rest import NO_CONTENT, Call, route
from fake_discord.rights import Permissions
from fake_discord.world import World

Json = dict[str, Any]
LONGEST_CONTENT = 2000
NONCE_SECONDS = 300.0


# --- who and where ----------------------------------------------------------------------------


@route("GET", "/gateway", token=False)
def gateway(call: Call) -> Json:
    return {"url": call.gateway_url}


@route("GET", "/gateway/bot")
def gateway_bot(call: Call) -> Json:
    limit = {"total": 1000, "remaining": 999, "reset_after": 0, "max_concurrency": 1}
    return {"url": call.gateway_url, "shards": 1, "session_start_limit": limit}


@route("GET", "/users/@me")
def own_user(call: Call) -> Json:
    return payloads.user(call.bot)


@route("GET", "/oauth2/applications/@me")
def own_application(call: Call) -> Json:
    return payloads.application(call.bot)


@route("GET", "/users/{user}")
def get_user(call: Call) -> Json:
    found = call.world.users.get(int(call.path["user"]))
    if found is None:
        raise ApiError(404, 10013, "Unknown User")
    return payloads.user(found)


@route("GET", "/guilds/{guild}/members/{user}")
def get_member(call: Call) -> Json:
    guild = call.world.guilds.get(int(call.path["guild"]))
    if guild is None or call.bot.id not in guild.members:
        raise ApiError(404, 10004, "Unknown Guild")
    found = guild.members.get(int(call.path["user"]))
    if found is None:
        raise ApiError(404, 10007, "Unknown Member")
    return payloads.member(found)


@route("POST", "/users/@me/channels")
def open_direct_channel(call: Call) -> Json:
    user = call.world.users.get(int(call.body["recipient_id"]))
    if user is None:
        raise invalid_form("recipient_id", "INVALID_RECIPIENT", "Invalid Recipient(s)")
    return payloads.channel(direct_channel(call.world, call.bot, user))


def direct_channel(world: World, bot: Bot, user: User) -> Channel:
    for channel in world.channels.values():
        if channel.kind == DIRECT and {bot, user} == set(channel.recipients):
            return channel
    channel = Channel(world.new_id(), DIRECT, world, recipients=[user, bot])
    world.channels[channel.id] = channel
    return channel


@route("GET", "/channels/{channel}")
def get_channel(call: Call) -> Json:
    return payloads.channel(call.channel())


# --- messages ---------------------------------------------------------------------------------


@route("POST", "/channels/{channel}/messages")
def post_message(call: Call) -> Json:
    channel = call.channel()
    in_thread = channel.parent is not None
    call.channel(Permissions.SEND_MESSAGES_IN_THREADS if in_thread else Permissions.SEND_MESSAGES)
    if channel.locked:
        raise ApiError(400, 50083, "Thread is archived")
    nonce = call.body.get("nonce")
    if nonce is not None and call.body.get("enforce_nonce"):
        known = call.bot.nonces.get(str(nonce))
        if known is not None and time.monotonic() - known[0] < NONCE_SECONDS:
            return call.shown(known[1])
    if any(call.bot.id in it.blocked for it in channel.recipients):
        raise ApiError(403, 50007, "Cannot send messages to this user")
    fields = message_fields(call)
    replied = replied_message(call, channel)
    if replied is not None:
        fields |= {"kind": REPLY, "reply_to": replied}
    fields["nonce"] = None if nonce is None else str(nonce)
    content = fields.pop("content", "")
    allowed = fields.get("allowed_mentions")
    found = mentions_of(channel, call.bot, content, allowed, replied)
    message = channel.post(call.bot, content, found, **fields)
    if nonce is not None:
        call.bot.nonces[str(nonce)] = (time.monotonic(), message)
    return call.shown(message)


def message_fields(call: Call, before: Message | None = None) -> Json:
    """Checked fields of a message that is sent, or edited if there is one before.

    Discord cuts white space at both ends; what is empty then is refused, as is what is too long.
    """
    body = call.body
    fields: Json = {}
    if "content" in body:
        fields["content"] = (body["content"] or "").strip()
        if len(fields["content"]) > LONGEST_CONTENT:
            what = f"Must be {LONGEST_CONTENT} or fewer in length."
            raise invalid_form("content", "BASE_TYPE_MAX_LENGTH", what)
    for name in ("embeds", "components", "flags"):
        if body.get(name) is not None:
            fields[name] = body[name]
    if before is None or "attachments" in body or call.files:
        kept = [it for it in body.get("attachments") or [] if "size" in it or "url" in it]
        new = [payloads.attachment(call.world.new_id(), name) for name in call.files]
        fields["attachments"] = [*kept, *new]
    if body.get("allowed_mentions") is not None:
        fields["allowed_mentions"] = body["allowed_mentions"]
    shown = ("content", "embeds", "components", "attachments")
    if not any(fields.get(name, getattr(before, name, None)) for name in shown):
        raise ApiError(400, 50006, "Cannot send an empty message")
    return fields


def replied_message(call: Call, channel: Channel) -> Message | None:
    reference = call.body.get("message_reference")
    if not reference or "message_id" not in reference:
        return None
    if not channel.can(call.bot, Permissions.READ_MESSAGE_HISTORY):
        raise ApiError(400, 160002, "You cannot reply without permission to read message history")
    found = channel.history.get(int(reference["message_id"]))
    if found is None and reference.get("fail_if_not_exists", True):
        raise invalid_form("message_reference", "REPLIES_UNKNOWN_MESSAGE", "Unknown message")
    return found


@route("GET", "/channels/{channel}/messages")
def list_messages(call: Call) -> list[Json]:
    """Newest first, whatever was asked; `after` means the ones that follow right after."""
    channel = call.channel()
    limit = int(call.query.get("limit", 50))
    if not 1 <= limit <= 100:
        raise invalid_form("limit", "NUMBER_TYPE_MAX", "int value should be 1 to 100.")
    if not channel.can(call.bot, Permissions.READ_MESSAGE_HISTORY):
        return []
    messages = channel.messages
    if "around" in call.query:
        around = int(call.query["around"])
        earlier = [it for it in messages if it.id < around][-(limit // 2) :]
        later = [it for it in messages if it.id >= around][: limit - len(earlier)]
        chosen = [*earlier, *later]
    elif "after" in call.query:
        chosen = [it for it in messages if it.id > int(call.query["after"])][:limit]
    else:
        before = int(call.query.get("before", 1 << 63))
        chosen = [it for it in messages if it.id < before][-limit:]
    return [call.shown(it) for it in reversed(chosen)]


@route("GET", "/channels/{channel}/messages/{message}")
def get_message(call: Call) -> Json:
    return call.shown(call.message(Permissions.READ_MESSAGE_HISTORY))


@route("PATCH", "/channels/{channel}/messages/{message}")
def edit_message(call: Call) -> Json:
    message = call.message()
    if message.author is not call.bot:
        raise ApiError(403, 50005, "Cannot edit a message authored by another user")
    message.edit(**message_fields(call, message))
    return call.shown(message)


@route("DELETE", "/channels/{channel}/messages/{message}")
def delete_message(call: Call) -> object:
    message = call.message()
    if message.author is not call.bot:
        call.channel(Permissions.MANAGE_MESSAGES)
    message.delete()
    return NO_CONTENT


@route("POST", "/channels/{channel}/typing")
def start_typing(call: Call) -> object:
    call.channel(Permissions.SEND_MESSAGES).type(call.bot)
    return NO_CONTENT


@route("PUT", "/channels/{channel}/messages/{message}/reactions/{emoji}/@me")
def add_reaction(call: Call) -> object:
    call.message(Permissions.READ_MESSAGE_HISTORY)
    call.message(Permissions.ADD_REACTIONS).react(call.bot, call.path["emoji"])
    return NO_CONTENT


@route("DELETE", "/channels/{channel}/messages/{message}/reactions/{emoji}/@me")
def remove_reaction(call: Call) -> object:
    call.message().unreact(call.bot, call.path["emoji"])
    return NO_CONTENT


# --- threads ----------------------------------------------------------------------------------


@route("POST", "/channels/{channel}/messages/{message}/threads")
def thread_below_message(call: Call) -> Json:
    message = call.message(Permissions.CREATE_PUBLIC_THREADS)
    if message.channel.kind != TEXT:
        raise ApiError(400, 50024, "Cannot execute action on this channel type")
    if message.thread is not None:
        raise ApiError(400, 160004, "A thread has already been created for this message")
    return payloads.channel(message.start_thread(call.bot, call.body["name"]))


@route("POST", "/channels/{channel}/threads")
def thread_alone(call: Call) -> Json:
    channel = call.channel(Permissions.CREATE_PUBLIC_THREADS)
    return payloads.channel(channel.start_thread(call.bot, call.body["name"]))


@route("PATCH", "/channels/{channel}")
def edit_thread(call: Call) -> Json:
    thread = call.channel()
    wanted = {key: call.body[key] for key in ("name", "archived", "locked") if key in call.body}
    thread.change_thread(**wanted)
    return payloads.channel(thread)
