"""The loopback Discord, proved by discord.py itself: what it parses and does is what counts."""

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import discord
import pytest
import yarl
from discord import app_commands

from fake_discord import FakeDiscord, Intents, Permissions

pytestmark = pytest.mark.usefixtures("quick_retries")
SETTLED = 0.1  # seconds after which what should not happen has had its chance


class Listener(discord.Client):
    """A client that keeps what it hears. Its waits are options of discord.py, set short."""

    def __init__(self, intents=None, **options):
        super().__init__(
            intents=intents or discord.Intents.all(), guild_ready_timeout=0.05, **options
        )
        self.heard = []
        self.tree = app_commands.CommandTree(self)
        self.failure = None

    async def before_identify_hook(self, shard_id, *, initial=False):
        """discord.py waits 5 s before it identifies again."""

    def dispatch(self, event, /, *arguments):
        super().dispatch(event, *arguments)
        self.heard.append((event, arguments))

    def all(self, event):
        return [arguments for name, arguments in self.heard if name == event]


class Running:
    """A client in a thread of its own, as the test's own code is synchronous."""

    def __init__(self, server, client, token):
        self.server, self.client = server, client
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.run, args=[token], daemon=True)
        self.thread.start()

    def run(self, token):
        async def live():
            try:
                async with self.client:
                    await self.client.start(token)
            except Exception as error:
                self.client.failure = error

        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(live())

    def do(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def hear(self, event, count=1, timeout=10):
        """The arguments of the last of so many events."""
        what = f"{count} × {event}"
        self.server.wait_until(lambda: len(self.client.all(event)) >= count, timeout, what)
        return self.client.all(event)[count - 1]

    def channel(self, channel):
        return self.client.get_channel(channel.id)

    def stop(self):
        if self.thread.is_alive() and not self.client.is_closed():
            self.do(self.client.close())
        self.thread.join(10)
        assert not self.thread.is_alive()


@pytest.fixture
def bot(server):
    return server.add_bot("Lora")


@pytest.fixture
def alice(server):
    return server.add_user("alice")


@pytest.fixture
def guild(server, bot, alice):
    return server.add_guild("Home")


@pytest.fixture
def channel(guild):
    return guild.add_channel("general", topic="All and nothing")


@pytest.fixture
def launch(server):
    started = []

    def launch(bot, client=None, token=None, ready=True):
        started.append(Running(server, client or Listener(), token or bot.token))
        if ready:
            started[-1].hear("ready")
        return started[-1]

    yield launch
    for it in started:
        it.stop()


@pytest.fixture
def running(launch, bot, channel):
    return launch(bot)


# --- logging in -------------------------------------------------------------------------------


def test_a_client_logs_in_and_knows_its_guild(server, bot, alice, guild, channel, launch):
    poets = guild.add_role("poets", Permissions.MANAGE_MESSAGES)
    guild.change_member(alice, roles=[poets], nick="Al")
    client = launch(bot).client
    assert client.user.id == bot.id and client.application.id == bot.id
    found = client.get_guild(guild.id)
    assert (found.name, found.owner_id, found.member_count) == ("Home", guild.owner.id, 3)
    assert found.chunked
    member = found.get_member(alice.id)
    assert (member.display_name, member.name, member.bot) == ("Al", "alice", False)
    assert member.get_role(poets.id).name == "poets"
    general = client.get_channel(channel.id)
    assert (general.name, general.topic) == ("general", "All and nothing")
    assert general.permissions_for(found.me).send_messages
    assert not general.permissions_for(found.me).manage_messages
    assert general.permissions_for(member).manage_messages
    (_, identify), *others = server.gateway.identifies
    assert identify["intents"] == discord.Intents.all().value and not others
    assert [it.path for it in server.requests()] == ["/users/@me", "/oauth2/applications/@me"]


def test_a_wrong_token_is_refused_by_http(server, bot, launch):
    running = launch(bot, token="wrong", ready=False)
    running.thread.join(10)
    assert isinstance(running.client.failure, discord.LoginFailure)


def test_a_token_that_fell_invalid_closes_the_gateway_for_good(server, bot, channel, launch):
    running = launch(bot)
    bot.token = "another"
    server.gateway.reconnect()
    running.thread.join(10)
    assert running.client.failure.code == 4004


def test_an_intent_that_the_portal_denies_closes_the_gateway_for_good(server, launch):
    bot = server.add_bot("Poor", privileged=Intents.GUILD_MEMBERS)
    running = launch(bot, ready=False)
    running.thread.join(10)
    assert isinstance(running.client.failure, discord.PrivilegedIntentsRequired)
    assert running.client.application.flags.gateway_guild_members_limited
    assert not running.client.application.flags.gateway_message_content_limited


def test_members_are_found_without_having_been_sent(server, bot, alice, guild, channel, launch):
    client = Listener(discord.Intents.default())
    running = launch(bot, client)
    found = client.get_guild(guild.id)
    assert [it.id for it in found.members] == [bot.id]
    (member,) = running.do(found.query_members(user_ids=[alice.id]))
    assert member.name == "alice"
    assert running.do(found.fetch_member(alice.id)) == member


def test_what_changes_later_arrives_too(server, bot, guild, running):
    bob = server.add_user("bob")
    assert running.hear("member_join")[0].id == bob.id
    late = guild.add_channel("late")
    assert running.hear("guild_channel_create")[0].id == late.id
    guild.remove_member(bob)
    assert running.hear("member_remove")[0].id == bob.id
    second = server.add_guild("Second")
    assert running.hear("guild_join")[0].id == second.id


# --- what people do ---------------------------------------------------------------------------


def test_a_message_arrives_with_all_its_fields(bot, alice, guild, channel, running):
    first = channel.say(alice, "nobody there?")
    channel.say(alice, "hi @Lora <@&1>", mentions=[bot], reply_to=first, attachments=["cat.png"])
    (message,) = running.hear("message", 2)
    assert message.content == f"hi {bot.mention} <@&1>"
    assert message.clean_content.startswith("hi @Lora")
    assert message.guild.id == guild.id and message.channel.name == "general"
    assert isinstance(message.author, discord.Member) and message.author.id == alice.id
    assert message.type is discord.MessageType.reply
    assert running.client.user in message.mentions and not message.mention_everyone
    assert message.reference.message_id == first.id
    assert message.reference.resolved.content == "nobody there?"
    assert message.attachments[0].filename == "cat.png"
    assert message.attachments[0].content_type == "image/png"
    assert abs(message.created_at - datetime.now(UTC)) < timedelta(seconds=10)
    assert message.edited_at is None


def test_edits_deletions_reactions_and_typing_arrive(alice, channel, running):
    message = channel.say(alice, "helo")
    running.hear("message")
    message.edit("hello")
    before, after = running.hear("message_edit")
    assert (before.content, after.content) == ("helo", "hello") and after.edited_at
    message.react(alice, "👍")
    reaction, member = running.hear("reaction_add")
    assert (reaction.emoji, reaction.count, member.name) == ("👍", 1, "alice")
    message.unreact(alice, "👍")
    running.hear("reaction_remove")
    channel.type(alice)
    assert running.hear("typing")[1].id == alice.id
    answer = channel.say(alice, "to what?", reply_to=message)
    message.delete()
    assert running.hear("message_delete")[0].id == message.id
    fetched = running.do(running.channel(channel).fetch_message(answer.id))
    assert isinstance(fetched.reference.resolved, discord.DeletedReferencedMessage)


def test_without_the_content_intent_only_what_is_meant_for_the_bot_has_text(
    server, bot, alice, channel, launch
):
    running = launch(bot, Listener(discord.Intents.default()))
    question = channel.say(alice, "secret")
    channel.say(alice, "hi @Lora", mentions=[bot], reply_to=question)
    server.open_dm(alice, bot).say(alice, "psst")
    running.hear("message", 3)
    texts = [message.content for (message,) in running.client.all("message")]
    assert texts == ["", f"hi {bot.mention}", "psst"]
    (mention,) = running.client.all("message")[1]
    assert mention.reference.resolved.content == ""


def test_a_mention_that_no_client_could_send_is_an_error(bot, alice, channel):
    with pytest.raises(ValueError, match="does not mention"):
        channel.say(alice, "hi there", mentions=[bot])


def test_back_dated_and_undelivered_messages_stand_in_the_history(alice, channel, running):
    channel.say(alice, "now")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    channel.say(alice, "yesterday", at=yesterday, deliver=False)
    running.hear("message")

    async def read():
        return [it async for it in running.channel(channel).history(oldest_first=True)]

    old, new = running.do(read())
    assert (old.content, new.content) == ("yesterday", "now")
    assert abs(old.created_at - yesterday) < timedelta(seconds=1)
    assert len(running.client.all("message")) == 1


# --- what the bot does ------------------------------------------------------------------------


def test_the_test_sees_replies_edits_reactions_and_typing(server, bot, alice, channel, running):
    question = channel.say(alice, "well?")
    (heard,) = running.hear("message")

    async def act():
        async with heard.channel.typing():
            pass
        answer = await heard.reply("  wait\n")
        await answer.edit(content="done")
        await heard.add_reaction("⏳")
        await heard.remove_reaction("⏳", running.client.user)
        await heard.add_reaction("✅")
        return answer

    sent = running.do(act())
    answer = channel.wait_for_message(author=bot, reply_to=question)
    assert (answer.id, answer.content, sent.content) == (sent.id, "done", "wait")
    assert [it.content for it in answer.edits] == ["done"]
    assert answer.at < answer.edits[0].at
    assert answer.mentions == [alice]
    assert question.reactions == {"✅": [bot]}
    assert channel.wait_for_typing(bot) < answer.at
    posts = server.requests("POST", "/channels/*/messages")
    assert [it.status for it in posts] == [200] and posts[0].body["enforce_nonce"]
    running.do(sent.delete())
    assert channel.messages == [question] and answer.deleted_at


@pytest.mark.parametrize(
    ("allowed", "pinged"),
    [
        (None, True),
        (discord.AllowedMentions.all(), True),
        (discord.AllowedMentions.none(), False),
    ],
)
def test_allowed_mentions_decide_who_is_pinged(
    bot, alice, guild, channel, running, allowed, pinged
):
    poets = guild.add_role("poets")
    channel.allow(bot, Permissions.MENTION_EVERYONE)
    question = channel.say(alice, "well?")
    (heard,) = running.hear("message")
    text = f"@everyone {alice.mention} {poets.mention}"
    running.do(heard.reply(text, allowed_mentions=allowed))
    answer = channel.wait_for_message(author=bot, reply_to=question)
    assert answer.mention_everyone is pinged
    assert answer.mentions == [alice] * pinged and answer.role_mentions == [poets] * pinged
    assert answer.content == text
    if allowed is not None:
        assert answer.allowed_mentions == allowed.to_dict()


def test_direct_messages_go_both_ways(server, bot, alice, channel, running):
    direct = server.open_dm(alice, bot)
    direct.say(alice, "psst")
    (heard,) = running.hear("message")
    assert isinstance(heard.channel, discord.DMChannel) and heard.guild is None
    running.do(heard.reply("what?"))
    assert direct.wait_for_message(author=bot).content == "what?"
    running.do(running.client.get_user(alice.id).send("still there?"))
    assert [it.content for it in direct.by(bot)] == ["what?", "still there?"]


def test_threads_go_both_ways(bot, alice, channel, running):
    below = channel.say(alice, "let us talk").start_thread(alice, "talk")
    assert running.hear("thread_create")[0].name == "talk"
    below.say(alice, "here")
    (heard,) = running.hear("message", 2)
    assert isinstance(heard.channel, discord.Thread)
    assert heard.channel.parent.id == channel.id and heard.channel.owner_id == alice.id
    running.do(heard.reply("yes"))
    assert below.wait_for_message(author=bot).content == "yes"
    (first,) = running.client.all("message")[0]
    alone = channel.start_thread(alice, "alone")
    assert running.hear("thread_create", 2)[0].id == alone.id
    own = running.do(
        running.channel(channel).create_thread(name="mine", type=discord.ChannelType.public_thread)
    )
    assert own.owner_id == bot.id

    async def starter():
        return [it async for it in first.thread.history(oldest_first=True, limit=1)]

    (starter,) = running.do(starter())
    assert starter.type is discord.MessageType.thread_starter_message
    assert starter.reference.resolved.content == "let us talk"
    below.change_thread(locked=True)
    with pytest.raises(discord.HTTPException) as refusal:
        running.do(heard.channel.send("too late"))
    assert refusal.value.code == 50083


def test_history_pages_as_discord_orders_it(alice, channel, running):
    messages = [channel.say(alice, str(number)) for number in range(7)]
    general = running.channel(channel)

    async def read(**options):
        return "".join([it.content async for it in general.history(**options)])

    middle = discord.Object(messages[3].id)
    assert running.do(read(limit=3)) == "654"
    assert running.do(read(limit=2, before=middle)) == "21"
    assert running.do(read(limit=2, after=middle)) == "45"
    assert running.do(read(limit=3, around=middle)) == "432"


# --- what Discord refuses ---------------------------------------------------------------------


def test_refusals_have_discords_status_and_code(server, bot, alice, guild, channel, running):
    message = channel.say(alice, "hello")
    (heard,) = running.hear("message")
    closed, hidden = guild.add_channel("closed"), guild.add_channel("hidden")
    closed.deny(bot, Permissions.SEND_MESSAGES | Permissions.ADD_REACTIONS)
    hidden.deny(guild.everyone, Permissions.VIEW_CHANNEL)
    running.hear("guild_channel_update", 2)
    alice.block(bot)

    def refused(coroutine):
        with pytest.raises(discord.HTTPException) as error:
            running.do(coroutine)
        return error.value.status, error.value.code

    general = running.channel(channel)
    assert refused(running.channel(closed).send("hi")) == (403, 50013)
    assert refused(running.channel(hidden).send("hi")) == (403, 50001)
    assert refused(running.client.get_user(alice.id).send("hi")) == (403, 50007)
    assert refused(general.send("x" * 2001)) == (400, 50035)
    assert refused(general.send(" \n ")) == (400, 50006)
    assert refused(heard.edit(content="mine now")) == (403, 50005)
    assert refused(heard.delete()) == (403, 50013)
    message.delete()
    assert refused(heard.reply("too late")) == (400, 50035)
    assert refused(heard.add_reaction("👍")) == (404, 10008)
    assert refused(general.fetch_message(message.id)) == (404, 10008)
    assert channel.posted == [message]
    hidden.say(alice, "among us")
    assert len(running.client.all("message")) == 1


# --- commands ---------------------------------------------------------------------------------


@pytest.fixture
def commanded(launch, bot, channel):
    """A client with one command of each kind, synchronised."""
    client = Listener()
    group = app_commands.Group(name="settings", description="Settings")
    client.tree.add_command(group)

    @client.tree.command(description="How it goes")
    async def status(interaction, member: discord.Member, count: app_commands.Range[int, 1, 9] = 1):
        await interaction.response.send_message(f"{member.name} × {count}", ephemeral=True)

    @client.tree.command(description="Takes long")
    async def slow(interaction):
        await interaction.response.defer()
        await interaction.followup.send("first")
        await interaction.followup.send("second", ephemeral=True)
        await interaction.edit_original_response(content="first, mended")

    @group.command(name="set", description="Set one")
    async def set_one(interaction, name: str, value: float):
        await interaction.response.send_message(f"{name} = {value}")

    @set_one.autocomplete("name")
    async def names(interaction, current):
        return [app_commands.Choice(name=it, value=it) for it in ["top_k", "top_p"]]

    @client.tree.context_menu(name="Regenerate")
    async def regenerate(interaction, message: discord.Message):
        view = discord.ui.View()
        button = discord.ui.Button(label="Again", custom_id="again")

        async def pressed(interaction):
            await interaction.response.edit_message(content="again!", view=None)

        button.callback = pressed
        view.add_item(button)
        await interaction.response.send_message(f"not {message.content!r}", view=view)

    @client.tree.command(description="For owners")
    @app_commands.default_permissions(manage_guild=True)
    async def owners(interaction):
        await interaction.response.send_message("yes")

    running = launch(bot, client)
    synced = running.do(client.tree.sync())
    assert {it.name for it in synced} == {"status", "slow", "settings", "Regenerate", "owners"}
    return running


def test_a_slash_command_is_answered_in_secret(server, bot, alice, channel, commanded):
    use = server.use_command(alice, channel, "status", member=alice, count=3)
    answer = use.wait_for_answer()
    assert (answer.content, answer.author) == ("alice × 3", bot)
    assert use.is_ephemeral and answer.is_ephemeral and not use.is_deferred
    assert channel.messages == [] and channel.posted == [answer]
    assert use.at < use.responded_at


def test_options_that_no_client_would_send_are_errors(server, alice, channel, commanded):
    with pytest.raises(ValueError, match="needs the option 'member'"):
        server.use_command(alice, channel, "status")
    with pytest.raises(ValueError, match="1 to 9"):
        server.use_command(alice, channel, "status", member=alice, count=10)
    with pytest.raises(ValueError, match="no option"):
        server.use_command(alice, channel, "slow", fast=True)
    with pytest.raises(LookupError):
        server.use_command(alice, channel, "unknown")
    with pytest.raises(PermissionError):
        server.use_command(alice, channel, "owners")
    owner = channel.guild.owner
    assert server.use_command(owner, channel, "owners").wait_for_answer().content == "yes"


def test_a_deferred_command_is_filled_and_followed_up(server, alice, channel, commanded):
    use = server.use_command(alice, channel, "slow")
    answer = use.wait_for_answer().wait_until(lambda it: it.content == "first, mended")
    assert use.is_deferred
    (followup,) = use.followups
    assert followup.content == "second" and followup.is_ephemeral
    assert channel.messages == [answer]


def test_groups_and_completions(server, alice, channel, commanded):
    name = "settings set"
    assert server.autocomplete(alice, channel, name, "name", name="to") == ["top_k", "top_p"]
    use = server.use_command(alice, channel, name, name="top_p", value=0.5)
    assert use.wait_for_answer().content == "top_p = 0.5"


def test_message_menus_and_buttons(server, bot, alice, channel, commanded):
    message = channel.say(alice, "so so")
    answer = server.use_message_command(alice, message, "Regenerate").wait_for_answer()
    assert answer.content == "not 'so so'"
    pressed = server.click(alice, answer, "Again")
    assert pressed.wait_for_answer() is answer
    answer.wait_until(lambda it: it.content == "again!")
    assert answer.components == []
    with pytest.raises(LookupError):
        server.click(alice, answer, "Again")


def test_an_interaction_is_acknowledged_once_and_in_time(server, alice, channel, commanded):
    use = server.use_command(alice, channel, "slow").wait_for_response()
    path = f"/interactions/{use.id}/{use.token}/callback"
    route = discord.http.Route("POST", path)
    body = {"type": 4, "data": {"content": "twice"}}
    with pytest.raises(discord.HTTPException) as refusal:
        commanded.do(commanded.client.http.request(route, json=body))
    assert refusal.value.code == 40060
    use.response_kind, use.at = None, use.at - 4
    with pytest.raises(discord.NotFound) as refusal:
        commanded.do(commanded.client.http.request(route, json=body))
    assert refusal.value.code == 10062


# --- faults of the HTTP side ------------------------------------------------------------------


@pytest.mark.parametrize("is_global", [False, True])
def test_a_429_of_discord_is_waited_out(server, bot, channel, running, is_global):
    server.fail_next(
        "POST", "/channels/*/messages", status=429, retry_after=0.2, is_global=is_global
    )
    began = time.monotonic()
    running.do(running.channel(channel).send("hi"))
    assert time.monotonic() - began >= 0.2
    assert len(channel.by(bot)) == 1
    assert [it.status for it in server.requests("POST", "/channels/*/messages")] == [429, 200]


def test_a_429_of_cloudflare_is_an_error_at_once(server, channel, running):
    server.fail_next("POST", "/channels/*/messages", status=429, via=False)
    with pytest.raises(discord.HTTPException) as refusal:
        running.do(running.channel(channel).send("hi"))
    assert refusal.value.status == 429 and channel.messages == []


@pytest.mark.parametrize("status", [500, 502])
def test_a_server_error_is_tried_again(server, bot, channel, running, status):
    fault = server.fail_next("POST", "/channels/*/messages", status=status)
    running.do(running.channel(channel).send("hi"))
    assert fault.hits == 1 and len(channel.by(bot)) == 1


def test_five_server_errors_are_an_error(server, channel, running):
    fault = server.fail_next("POST", "/channels/*/messages", status=504, times=9)
    with pytest.raises(discord.DiscordServerError):
        running.do(running.channel(channel).send("hi"))
    assert fault.hits == 5 and channel.messages == []


def test_a_503_is_an_error_at_once(server, channel, running):
    server.fail_next("POST", "/channels/*/messages", status=503, skip=1)
    general = running.channel(channel)
    running.do(general.send("passes"))
    with pytest.raises(discord.DiscordServerError):
        running.do(general.send("hi"))


def test_a_retry_of_what_was_carried_out_makes_no_second_message(server, bot, channel, running):
    server.fail_next("POST", "/channels/*/messages", status=502, carried_out=True)
    sent = running.do(running.channel(channel).send("hi"))
    assert len(server.requests("POST", "/channels/*/messages")) == 2
    assert [it.id for it in channel.by(bot)] == [sent.id]


def test_a_dropped_answer_and_the_same_nonce_make_one_message(server, bot, channel, running):
    server.fail_next("POST", "/channels/*/messages", drop_answer=True)
    general = running.channel(channel)
    with pytest.raises(discord.http.aiohttp.ClientError):
        running.do(general.send("hi", nonce=7))
    (message,) = channel.by(bot)
    assert running.do(general.send("hi", nonce=7)).id == message.id
    assert running.do(general.send("hi", nonce=8)).id != message.id
    dropped = server.requests("POST", "/channels/*/messages")[0]
    assert dropped.status is None and dropped.body["nonce"] == "7"


def test_a_dropped_request_was_never_carried_out(server, channel, running):
    server.fail_next("*", "/channels/**", drop_request=True)
    with pytest.raises(discord.http.aiohttp.ClientError):
        running.do(running.channel(channel).send("hi"))
    assert channel.messages == []


def test_a_slow_answer_comes_late(server, channel, running):
    server.fail_next("POST", "/channels/*/messages", delay=0.3)
    began = time.monotonic()
    running.do(running.channel(channel).send("hi"))
    assert 0.3 <= time.monotonic() - began < 5


def test_rate_limits_are_kept_by_discord_py_and_enforced_on_others(server, bot, channel, running):
    server.enforce_rate_limits()
    server.wire.limits.limits["POST /channels/{channel}/messages"] = (2, 0.5)
    general = running.channel(channel)

    async def send_all():
        await asyncio.gather(*[general.send(str(number)) for number in range(6)])

    began = time.monotonic()
    running.do(send_all())
    assert time.monotonic() - began >= 1.0
    assert server.rate_limit_violations == 0 and len(channel.by(bot)) == 6

    async def send_without_looking():
        url = f"{server.api_base}/channels/{channel.id}/messages"
        headers = {"Authorization": f"Bot {bot.token}"}
        async with discord.http.aiohttp.ClientSession(headers=headers) as session:
            for _ in range(4):
                async with session.post(url, json={"content": "hi"}) as answer:
                    yield answer.status, "Via" in answer.headers

    async def collect():
        return [it async for it in send_without_looking()]

    answers = running.do(collect())
    assert answers[-1] == (429, True) and server.rate_limit_violations >= 1


# --- faults of the gateway --------------------------------------------------------------------


def texts(running):
    return [message.content for (message,) in running.client.all("message")]


@pytest.mark.parametrize(
    "cut",
    [
        lambda gateway: gateway.reconnect(),
        lambda gateway: gateway.invalidate(resumable=True),
        lambda gateway: gateway.close(4000),
        lambda gateway: gateway.abort(),
    ],
    ids=["op 7", "op 9 true", "close 4000", "abort"],
)
def test_after_a_cut_the_session_is_resumed_with_nothing_lost_or_doubled(
    server, bot, alice, channel, running, cut
):
    expected = [str(number) for number in range(30)]
    for text in expected[:10]:
        channel.say(alice, text)
    cut(server.gateway)
    for text in expected[10:20]:
        channel.say(alice, text)
    running.hear("resumed")
    for text in expected[20:]:
        channel.say(alice, text)
    running.hear("message", 30)
    time.sleep(SETTLED)
    assert texts(running) == expected
    assert len(server.gateway.identifies) == 1 and len(server.gateway.resumes) == 1


def test_what_happened_while_nobody_could_connect_is_replayed(server, alice, channel, running):
    server.gateway.refuse(0.3)
    server.gateway.abort()
    channel.say(alice, "in between")
    running.hear("resumed")
    running.hear("message")
    assert texts(running) == ["in between"] and server.gateway.refused >= 1


@pytest.mark.parametrize(
    "cut",
    [
        lambda gateway: gateway.invalidate(resumable=False),
        lambda gateway: gateway.close(4009),
    ],
    ids=["op 9 false", "close 4009"],
)
def test_a_lost_session_begins_anew(server, bot, alice, channel, running, cut):
    cut(server.gateway)
    channel.say(alice, "lost to the gateway")
    running.hear("ready", 2)
    channel.say(alice, "heard")
    running.hear("message")
    assert texts(running) == ["heard"]
    assert len(server.gateway.identifies) == 2

    async def read():
        return [it.content async for it in running.channel(channel).history()]

    assert running.do(read()) == ["heard", "lost to the gateway"]


def test_heartbeats_are_acknowledged_and_answered(server, running):
    assert server.gateway.request_heartbeat() < 1
    assert running.client.latency < 1


def test_a_blocked_event_loop_shows_in_the_heartbeats(bot, monkeypatch):
    with FakeDiscord(heartbeat_interval=0.1) as server:
        monkeypatch.setattr(discord.http.Route, "BASE", server.api_base)
        gateway = yarl.URL(server.gateway_url)
        monkeypatch.setattr(discord.gateway.DiscordWebSocket, "DEFAULT_GATEWAY", gateway)
        bot = server.add_bot("Lora")
        running = Running(server, Listener(), bot.token)
        running.hear("ready")
        before = server.longest_heartbeat_gap
        running.loop.call_soon_threadsafe(time.sleep, 0.8)
        time.sleep(1.0)
        assert server.longest_heartbeat_gap >= 0.8 > before
        running.stop()


def test_a_zombie_connection_is_left_and_resumed(server, bot, alice, channel, launch, monkeypatch):
    server.gateway.heartbeat_interval = 0.1
    running = launch(bot, Listener(heartbeat_timeout=0.4))
    server.gateway.freeze()
    channel.say(alice, "do you hear me?")
    running.hear("resumed")
    running.hear("message")
    assert texts(running) == ["do you hear me?"]


def test_missing_acks_are_only_seen_by_a_client_that_hears_nothing(server, bot, channel, launch):
    server.gateway.heartbeat_interval = 0.1
    server.gateway.withholds_acks = True
    running = launch(bot, Listener(heartbeat_timeout=0.4))
    running.hear("resumed")
    assert len(server.gateway.identifies) == 1


# --- an unchanged process ---------------------------------------------------------------------

PROGRAM = """
    import os, discord, yarl

    base = os.environ["DISCORD_API_BASE"]
    discord.http.Route.BASE = base
    discord.gateway.DiscordWebSocket.DEFAULT_GATEWAY = (
        yarl.URL(base).with_scheme("ws").with_path("/")
    )
    client = discord.Client(intents=discord.Intents.all())

    @client.event
    async def on_message(message):
        if client.user in message.mentions:
            await message.reply(message.content[::-1])
            if "bye" in message.content:
                await client.close()

    client.run(os.environ["DISCORD_TOKEN"])
"""


@contextmanager
def bot_process(server, bot):
    """The program above, connected; ended with the block, however that ends."""
    environment = {"DISCORD_API_BASE": server.api_base, "DISCORD_TOKEN": bot.token}
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM)]
    with subprocess.Popen(program, env=environment) as process:
        try:
            server.wait_until_connected(bot)
            yield process
        finally:
            process.kill()


def test_a_bot_process_of_its_own_answers_and_says_goodbye(server, bot, alice, channel):
    with bot_process(server, bot) as process:
        question = channel.say(alice, "hi @Lora", mentions=[bot])
        answer = channel.wait_for_message(author=bot, reply_to=question)
        assert answer.content == question.content[::-1]
        channel.say(alice, "bye @Lora", mentions=[bot])
        server.wait_until_gone(bot)
        assert process.wait(10) == 0
    # discord.py means 1000; its reader wakes first and says 4000. A killed process says nothing.
    assert server.gateway.closes[-1][1] in (1000, 4000)


def test_a_killed_process_leaves_without_a_word(server, bot, alice, channel):
    with bot_process(server, bot) as process:
        process.kill()
    server.wait_until_gone(bot)
    assert server.gateway.closes[-1][1] is None


def test_what_does_not_happen_is_an_error_that_says_so(server, bot, alice, channel):
    channel.say(alice, "hello?")
    with pytest.raises(TimeoutError, match=r"#general holds \[.*hello"):
        channel.wait_for_message(author=bot, timeout=0.1)
    with pytest.raises(TimeoutError, match="Lora's log-in did not happen"):
        server.wait_until_connected(bot, timeout=0.1)
    assert server.stays_quiet(channel, bot, 0.1)
