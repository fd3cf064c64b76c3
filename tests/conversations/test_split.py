from hypothesis import given, settings
from hypothesis import strategies as st

from discord_lora.conversations.build import build_conversations
from discord_lora.conversations.split import split_conversations
from fakes import chatter, say


def all_targets(message):
    return message.train


def spread(conversations):
    return [m for c in conversations for m in c.messages[c.quoted :]]


def test_the_last_part_of_each_channel_is_held_out():
    messages = [
        say("Ada", minute=60 * hour, channel=channel) for channel in "ab" for hour in range(20)
    ]
    training, validation = split_conversations(build_conversations(messages, 30), 0.1, all_targets)
    assert len(validation) == 4
    for channel in "ab":
        held_out = [m.timestamp for m in spread(validation) if m.channel_id == channel]
        kept = [m.timestamp for m in spread(training) if m.channel_id == channel]
        assert min(held_out) > max(kept)


def test_a_channel_that_never_sleeps_is_cut_at_its_longest_silence():
    messages = chatter(100)
    shifted = [
        m if n < 93 else say(m.author, m.content, minute=n + 20, id=m.id)
        for n, m in enumerate(messages)
    ]
    training, validation = split_conversations(build_conversations(shifted, 30), 0.1, all_targets)
    assert [m.id for m in spread(validation)] == [f"m{n}" for n in range(93, 100)]
    assert len(spread(training)) == 93


def test_nothing_is_held_out_when_nothing_is_asked_for():
    conversations = build_conversations(chatter(50), 30)
    assert split_conversations(conversations, 0.0, all_targets) == (conversations, [])


@settings(max_examples=60, deadline=None)
@given(
    gaps=st.lists(st.floats(0.1, 3000), min_size=1, max_size=60),
    replies=st.lists(st.integers(0, 59), max_size=20),
    fraction=st.floats(0, 0.5),
)
def test_no_held_out_message_is_seen_in_training(gaps, replies, fraction):
    minute, messages = 0.0, []
    for number, gap in enumerate(gaps):
        minute += gap
        target = replies[number % len(replies)] if replies else None
        reply = f"m{target}" if target is not None and target < number else None
        messages.append(say("AdaBobCy"[number % 3], minute=minute, id=f"m{number}", reply_to=reply))
    training, validation = split_conversations(
        build_conversations(messages, 30), fraction, all_targets
    )
    held_out = {m.id for m in spread(validation)}
    seen = {m.id for c in training for m in c.messages}
    assert not held_out & seen
    assert held_out | {m.id for m in spread(training)} == {m.id for m in messages}
    assert {c.id for c in training}.isdisjoint({c.id for c in validation})
