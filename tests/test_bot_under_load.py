"""The bot's process in a crowd, and over a long time."""

import random
import signal
import time

import psutil
import pytest

from discord_lora.discord_bot.signs import BUSY_SIGN, HEARD_SIGN
from loopback import LOADING_SECONDS, ended
from watched_bot import latest_of

CHANNELS, MESSAGES, SECONDS = 20, 500, 10.0
WARM_UP, LONG = 300, 2000


def standing(question, account):
    """How a question was dealt with: answered, answered together with a later one, or a sign."""
    channel = question.channel
    answered = [it.reply_to for it in channel.by(account) if it.reply_to is not None]
    if question in answered:
        return "answered"
    if any(it.author is question.author and it.id > question.id for it in answered):
        return "with a later one"
    signs = {sign for sign, users in question.reactions.items() if account in users}
    return "acknowledged" if signs & {HEARD_SIGN, BUSY_SIGN} else ""


def assert_none_twice(questions, account):
    for question in questions:
        replies = [it for it in question.channel.by(account) if it.reply_to is question]
        assert len(replies) <= 1, question


@pytest.mark.slow
@pytest.mark.alone
def test_five_hundred_messages_in_ten_seconds(server, launch, tmp_path):
    account = server.add_bot("Lora")
    people = [server.add_user(f"member{n}") for n in range(40)]
    guild = server.add_guild("Home")
    channels = [guild.add_channel(f"channel{n}") for n in range(CHANNELS)]
    server.enforce_rate_limits()
    server.gateway.heartbeat_interval = 1.0
    process = launch(token=account.token, script=("tests/watched_bot.py", tmp_path / "late"))
    server.wait_until_connected(account, timeout=LOADING_SECONDS)
    channels[0].wait_for_message(author=account, reply_to=channels[0].say(people[0], "lora?"))
    memory_before = psutil.Process(process.pid).memory_info().rss
    questions, chance, began = [], random.Random(1), time.monotonic()
    for number in range(MESSAGES):
        time.sleep(max(0.0, began + number * SECONDS / MESSAGES - time.monotonic()))
        channel, author = channels[number % CHANNELS], chance.choice(people)
        if chance.random() < 0.25:
            questions.append(channel.say(author, f"{number} @Lora?", mentions=[account]))
        else:
            channel.say(author, f"{number} and some words of talk")
    assert time.monotonic() - began < 1.5 * SECONDS
    server.wait_until(
        lambda: all(standing(it, account) for it in questions), timeout=120, what="all answers"
    )
    late = latest_of(tmp_path / "late", began)
    time.sleep(3)
    found = [standing(it, account) for it in questions]
    counts = {how: found.count(how) for how in sorted(set(found))}
    gap = server.longest_heartbeat_gap
    grown = (psutil.Process(process.pid).memory_info().rss - memory_before) / 1e6
    print(f"{len(questions)} mentions: {counts}; memory +{grown:.0f} MB")
    print(f"the event loop was at its latest {late.seconds * 1000:.0f} ms late: {late}")
    print(f"heartbeats, one a second, were {gap:.2f} s apart at most")
    assert_none_twice(questions, account)
    assert late.seconds <= 0.1, late
    assert gap < 1.5
    assert grown < 100
    assert server.rate_limit_violations == 0
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130


@pytest.mark.slow
@pytest.mark.alone
def test_memory_stays_flat_over_two_thousand_messages(server, launch):
    """After the first hundreds, which fill what is bounded: caches, pools, the allocator's own.

    What grows after them, for some ten thousand messages, is free: glibc holds it back in pieces,
    and `malloc_trim` would return it. In use are then 0.3 MB more for each 1,000 messages, the
    decisions that the journal keeps until it has 20,000.
    """
    account = server.add_bot("Lora")
    people = [server.add_user(f"member{n}") for n in range(20)]
    guild = server.add_guild("Home")
    channels = [guild.add_channel(f"channel{n}") for n in range(2)]
    process = launch(token=account.token)
    server.wait_until_connected(account, timeout=LOADING_SECONDS)
    memory, resident = psutil.Process(process.pid).memory_info, []
    for number in range(WARM_UP + LONG + 1):
        channel, author = channels[number % 2], people[number % len(people)]
        if number % 500 == WARM_UP:
            resident.append(memory().rss / 1e6)
        if number % 4:
            channel.say(author, f"{number} and some words of talk")
            continue
        question = channel.say(author, f"{number} @Lora?", mentions=[account])
        channel.wait_for_message(author=account, after=question, timeout=30)
    print("MB after each 500 messages:", *(f"{it:.1f}" for it in resident))
    assert len(resident) == 1 + LONG // 500
    assert resident[-1] - resident[0] < 30
    assert resident[-1] - resident[2] < 10
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
