"""A small Discord on the loopback interface, for bots that must not know that they are tested.

    with FakeDiscord() as server:
        bot = server.add_bot("Lora")
        alice = server.add_user("alice")
        channel = server.add_guild("Home").add_channel("general")
        ...                                   # start the bot: server.api_base, bot.token
        server.wait_until_connected(bot)
        question = channel.say(alice, "hi @Lora", mentions=[bot])
        answer = channel.wait_for_message(author=bot, reply_to=question)

It speaks Discord's HTTP and WebSocket wire (API version 10) and knows nothing of discord.py.

    server.py        starting, stopping, what a test may do and wait for
    world.py         all that exists, the lock around it, and waiting for a change
    people.py        users, bots, roles, guilds
    channels.py      channels and messages
    mentions.py      whom a text pings
    rights.py        permission and intent bits, who may do what where
    payloads.py      all of it as Discord's JSON
    gateway.py       WebSocket: identify, heartbeat, resume, and breaking all of it
    session.py       what one IDENTIFY began, and the socket it is told through
    rest.py          HTTP: token, log, faults; the routes are in routes.py
    faults.py        scripted failures and rate limits of the HTTP side
    commands.py      people use commands, menus and buttons
    interactions.py  and the bot answers them
"""

from fake_discord.channels import Channel, Message
from fake_discord.faults import Request
from fake_discord.interactions import Interaction
from fake_discord.people import Bot, Guild, Role, User
from fake_discord.rights import Intents, Permissions
from fake_discord.server import FakeDiscord

__all__ = [
    "Bot",
    "Channel",
    "FakeDiscord",
    "Guild",
    "Intents",
    "Interaction",
    "Message",
    "Permissions",
    "Request",
    "Role",
    "User",
]
