"""What the bot does in Discord, on the real wire, with a backend that says what it is told."""

SETTLED = 0.3  # seconds after which what should not happen has had its chance


def test_it_answers_whoever_speaks_to_it(server, account, alice, guild, channel, start):
    bot = start()
    mention = channel.say(alice, "hello @Lora", mentions=[account])
    answer = channel.wait_for_message(author=account, reply_to=mention)
    assert answer.content == "you said hello @Lora"
    assert answer.allowed_mentions == {"parse": [], "replied_user": False}
    reply = channel.say(alice, "and now?", reply_to=answer, ping=False)
    channel.wait_for_message(author=account, reply_to=reply)
    named = channel.say(alice, "lora, are you there?")
    channel.wait_for_message(author=account, reply_to=named)
    direct = server.open_dm(alice, account)
    question = direct.say(alice, "just you and me")
    direct.wait_for_message(author=account, reply_to=question)
    assert len(bot.backend.requests) == 4
    assert [it.author for it in bot.backend.requests[1].conversation.messages] == [
        "Alice", "Lora", "Alice",
    ]  # fmt: skip
