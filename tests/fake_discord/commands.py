"""People use commands, menus and buttons; what Discord's own client would refuse is refused."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from fake_discord import payloads
from fake_discord.channels import Channel, Message
from fake_discord.interactions import (
    AUTOCOMPLETE,
    COMMAND,
    COMPONENT,
    MESSAGE_MENU,
    SLASH,
    USER_MENU,
    Interaction,
)
from fake_discord.people import Bot, Role, User
from fake_discord.rights import Intents, Permissions, guild_permissions
from fake_discord.world import Event

Json = dict[str, Any]
SUBCOMMAND, SUBCOMMAND_GROUP = 1, 2


def use_command(
    user: User, channel: Channel, name: str, options: Json, *, focused: str | None = None
) -> Interaction:
    """A slash command, "group command" for one in a group; `focused` asks for completions.

    Raises LookupError if no bot here has registered it, PermissionError if the user may not see
    it, ValueError for options that Discord's own client would not send.
    """
    world, words = channel.world, name.split()
    with world.changed:
        bot, command = registered(channel, user, words[0], SLASH)
        resolved: Json = {}
        sent = chosen_options(channel, command, words[1:], options, resolved, focused)
        data: Json = {"id": command["id"], "name": words[0], "type": SLASH, "options": sent}
        if resolved:
            data["resolved"] = resolved
        kind = AUTOCOMPLETE if focused else COMMAND
        return begin(Interaction(world.new_id(), kind, bot, user, channel, data))


def use_message_command(user: User, message: Message, name: str) -> Interaction:
    """An entry of the menu on a message. Raises as `use_command` does."""
    channel, world = message.channel, message.channel.world
    with world.changed:
        bot, command = registered(channel, user, name, MESSAGE_MENU)
        shown = payloads.message(message, bot, Intents.MESSAGE_CONTENT)
        data: Json = {"id": command["id"], "name": name, "type": MESSAGE_MENU}
        data |= {"target_id": str(message.id), "resolved": {"messages": {str(message.id): shown}}}
        return begin(Interaction(world.new_id(), COMMAND, bot, user, channel, data))


def use_user_command(user: User, channel: Channel, target: User, name: str) -> Interaction:
    """An entry of the menu on a member. Raises as `use_command` does."""
    with channel.world.changed:
        bot, command = registered(channel, user, name, USER_MENU)
        resolved: Json = {}
        data: Json = {"id": command["id"], "name": name, "type": USER_MENU}
        data |= {"target_id": resolve(channel, target, resolved), "resolved": resolved}
        it = Interaction(channel.world.new_id(), COMMAND, bot, user, channel, data)
        return begin(it)


def click(user: User, message: Message, which: str, values: list[str] | None = None) -> Interaction:
    """A button by its label or custom_id, or a menu by its custom_id with the chosen values.

    Raises LookupError if the message has no such component, or it is disabled.
    """
    world = message.channel.world
    with world.changed:
        for component in components_of(message.components):
            if which in (component.get("label"), component.get("custom_id")):
                break
        else:
            raise LookupError(f"{message!r} has no component {which!r}")
        if component.get("disabled"):
            raise LookupError(f"{which!r} is disabled")
        assert isinstance(message.author, Bot)
        data = {"custom_id": component["custom_id"], "component_type": component["type"]}
        if values is not None:
            data["values"] = values
        it = Interaction(
            world.new_id(), COMPONENT, message.author, user, message.channel, data, message
        )
        return begin(it)


def begin(it: Interaction) -> Interaction:
    world = it.channel.world
    world.interactions[it.token] = it
    world.tell(Event("INTERACTION_CREATE", partial(payloads.interaction, it), bot=it.bot))
    return it


def registered(channel: Channel, user: User, name: str, kind: int) -> tuple[Bot, Json]:
    """The bot and its command; one of the guild comes before a global one."""
    here = [member.user for member in channel.guild.members.values()] if channel.guild else []
    for bot in [*here, *channel.recipients]:
        if not isinstance(bot, Bot):
            continue
        for place in [channel.guild.id, None] if channel.guild else [None]:
            for command in bot.commands.get(place, []):
                if command["name"] == name and command.get("type", SLASH) == kind:
                    check_visible(channel, user, command)
                    return bot, command
    raise LookupError(f"no bot in #{channel.name} has registered {name!r}")


def check_visible(channel: Channel, user: User, command: Json) -> None:
    needed = command.get("default_member_permissions")
    if channel.guild is None:
        if command.get("dm_permission") is False or 1 not in (command.get("contexts") or [1]):
            raise LookupError(f"{command['name']!r} is not for direct messages")
    elif needed is not None:
        wanted = Permissions(int(needed)) or Permissions.ADMINISTRATOR
        if guild_permissions(channel.guild, user) & wanted != wanted:
            raise PermissionError(f"{user.name} does not see {command['name']!r}")


def chosen_options(
    channel: Channel,
    command: Json,
    words: list[str],
    options: Json,
    resolved: Json,
    focused: str | None,
) -> list[Json]:
    """The options as sent, checked against what was registered; subcommands nest."""
    known = {it["name"]: it for it in command.get("options") or []}
    if words:
        sub = known[words[0]]
        inside = chosen_options(channel, sub, words[1:], options, resolved, focused)
        return [{"name": words[0], "type": sub["type"], "options": inside}]
    if any(it["type"] in (SUBCOMMAND, SUBCOMMAND_GROUP) for it in known.values()):
        raise ValueError(f"{command['name']} needs one of {sorted(known)}")
    if unknown := options.keys() - known.keys():
        raise ValueError(f"{command['name']} has no option {sorted(unknown)}")
    sent = []
    for name, option in known.items():
        if name not in options:
            if option.get("required") and focused is None:
                raise ValueError(f"{command['name']} needs the option {name!r}")
            continue
        value = options[name]
        if focused is None:
            check_option(option, value)
        if isinstance(value, User | Role | Channel):
            value = resolve(channel, value, resolved)
        entry = {"name": name, "type": option["type"], "value": value}
        sent.append(entry | ({"focused": True} if name == focused else {}))
    return sent


def check_option(option: Json, value: Any) -> None:
    choices = [it["value"] for it in option.get("choices") or []]
    if choices and value not in choices:
        raise ValueError(f"{option['name']} is one of {choices}, not {value!r}")
    low, high = option.get("min_value"), option.get("max_value")
    if (low is not None and value < low) or (high is not None and value > high):
        raise ValueError(f"{option['name']} is {low} to {high}, not {value!r}")


def resolve(channel: Channel, value: User | Role | Channel, resolved: Json) -> str:
    """The id of a user, role or channel, whose object goes along in `resolved`."""
    key = str(value.id)
    if isinstance(value, User):
        resolved.setdefault("users", {})[key] = payloads.user(value)
        if channel.guild is not None and value.id in channel.guild.members:
            member = payloads.member(channel.guild.members[value.id], with_user=False)
            permissions = int(guild_permissions(channel.guild, value))
            resolved.setdefault("members", {})[key] = {**member, "permissions": str(permissions)}
    elif isinstance(value, Role):
        resolved.setdefault("roles", {})[key] = payloads.role(value)
    else:
        shown = {**payloads.channel(value), "permissions": "0"}
        resolved.setdefault("channels", {})[key] = shown
    return key


def components_of(rows: list[Json]) -> Iterator[Json]:
    for it in rows:
        yield it
        yield from components_of(it.get("components", []))
        if "accessory" in it:
            yield it["accessory"]
