"""A hundred faults in a row: no mention is lost, none is answered twice."""

import random
import time

import pytest

FAULTS = 100
GATEWAY = {
    "aborted": lambda gateway: gateway.abort(),
    "told to reconnect": lambda gateway: gateway.reconnect(),
    "invalid, resumable": lambda gateway: gateway.invalidate(resumable=True),
    "invalid": lambda gateway: gateway.invalidate(resumable=False),
    "closed 4000": lambda gateway: gateway.close(4000),
    "closed 4009": lambda gateway: gateway.close(4009),
    "aborted, session forgotten": lambda gateway: (gateway.abort(), gateway.forget_sessions()),
}
SENDING = [
    {"drop_request": True},
    {"drop_answer": True},
    {"status": 500},
    {"status": 502, "carried_out": True},
    {"status": 503},
    {"status": 503, "carried_out": True},
    {"status": 429, "retry_after": 0.3},
    {"status": 429, "retry_after": 0.3, "is_global": True},
    {"status": 429, "via": False},
]


def is_dealt_with(question, account):
    """Answered itself, or together with a later message of the same member."""
    answered = [it.reply_to for it in question.channel.by(account) if it.reply_to]
    return any(it.author is question.author and it.id >= question.id for it in answered)


@pytest.mark.slow
def test_a_hundred_faults_lose_and_double_nothing(server, account, guild, start):
    chance = random.Random(4)
    people = [server.add_user(f"member{n}") for n in range(30)]
    channels = [guild.add_channel(f"channel{n}") for n in range(5)]
    bot = start()
    questions, counts = [], {}

    def ask():
        channel = chance.choice(channels)
        questions.append(channel.say(chance.choice(people), f"lora, {len(questions)}?"))

    for number in range(FAULTS):
        bot.backend.seconds_a_word = chance.choice([0.0, 0.02, 0.1])
        ask()
        time.sleep(chance.random() * 0.3)
        if number % 12 == 11:
            name = "killed and started again"
            bot.kill()
            ask()
            bot = start()
        elif number % 2:
            name = "sending"
            method, path = chance.choice([
                ("POST", "/channels/*/messages"), ("GET", "/channels/*/messages"),
                ("POST", "/channels/*/typing"),
            ])  # fmt: skip
            server.fail_next(method, path, **chance.choice(SENDING))
        else:
            server.wait_until_connected(account)
            name = chance.choice(list(GATEWAY))
            GATEWAY[name](server.gateway)
        counts[name] = counts.get(name, 0) + 1
        ask()
    server.wait_until_connected(account)
    server.wait_until(
        lambda: all(is_dealt_with(it, account) for it in questions), 90, "an answer to everybody"
    )
    time.sleep(2)
    print(f"{len(questions)} mentions, {sum(counts.values())} faults: {counts}")
    for question in questions:
        replies = [it for it in question.channel.by(account) if it.reply_to is question]
        assert len(replies) <= 1, question
