from discord_lora.conversations.build import build_conversations, from_ready
from discord_lora.messages.record import ReadyConversation, Turn
from fakes import chatter, contents, say


def grouped(*messages, gap=30.0):
    return [contents(c.messages) for c in build_conversations(messages, gap)]


def test_silence_ends_a_conversation():
    assert grouped(say("Ada", "a"), say("Bob", "b", minute=29), say("Ada", "c", minute=60)) == [
        ["a", "b"],
        ["c"],
    ]


def test_channels_never_mix():
    assert grouped(say("Ada", "a"), say("Bob", "b", minute=1, channel="other")) == [["a"], ["b"]]


def test_a_reply_bridges_the_silence():
    question = say("Ada", "q", id="1")
    answer = say("Bob", "a", minute=120, reply_to="1")
    assert grouped(question, answer) == [["q", "a"]]


def test_a_late_reply_quotes_what_it_answers_instead_of_joining():
    question = say("Ada", "q", id="1")
    chat = say("Cy", "chat", minute=1)
    answer = say("Bob", "a", minute=60 * 48, reply_to="1")
    old, new = build_conversations([question, chat, answer], 30)
    assert contents(old.messages) == ["q", "chat"]
    assert contents(new.messages) == ["q", "a"]
    assert new.quoted == 1
    assert not new.messages[0].train
    assert new.start == answer.timestamp


def test_a_reply_to_a_missing_message_is_an_ordinary_message():
    assert grouped(say("Ada", "a"), say("Bob", "b", minute=1, reply_to="gone")) == [["a", "b"]]


def test_interleaved_reply_chains_become_two_conversations():
    messages = [
        say("Ada", "q1", minute=0, id="1"),
        say("Eve", "q2", minute=1, id="2"),
        say("Bob", "a1", minute=2, id="3", reply_to="1"),
        say("Cy", "a2", minute=3, id="4", reply_to="2"),
        say("Ada", "thanks1", minute=4, id="5"),
        say("Eve", "thanks2", minute=5, id="6"),
    ]
    # Ada's question is answered before Eve's chain is known to end, so both run side by side.
    assert grouped(*messages) == [["q1", "a1", "thanks1"], ["q2", "a2", "thanks2"]]


def test_a_mention_joins_the_conversation_of_the_person_named():
    messages = [
        say("Ada", "q1", minute=0, id="1"),
        say("Eve", "q2", minute=1, id="2"),
        say("Bob", "a1", minute=2, id="3", reply_to="1"),
        say("Cy", "a2", minute=3, id="4", reply_to="2"),
        say("Dan", "me too @Ada", minute=4),
    ]
    assert ["q1", "a1", "me too @Ada"] in grouped(*messages)


def test_chains_that_follow_each_other_stay_one_conversation():
    messages = [
        say("Ada", "q1", minute=0, id="1"),
        say("Bob", "a1", minute=1, id="2", reply_to="1"),
        say("Eve", "q2", minute=2, id="3"),
        say("Cy", "a2", minute=3, id="4", reply_to="3"),
    ]
    assert grouped(*messages) == [["q1", "a1", "q2", "a2"]]


def test_each_message_is_in_exactly_one_conversation():
    messages = chatter(200)
    conversations = build_conversations(reversed(messages), 0.5)
    ids = [m.id for c in conversations for m in c.messages[c.quoted :]]
    assert sorted(ids) == sorted(m.id for m in messages)


def test_a_ready_conversation_keeps_turns_and_system_prompt():
    turns = (Turn("system", "be brief"), Turn("user", "hi"), Turn("assistant", "ho", train=True))
    made = from_ready(ReadyConversation("r", turns), 3)
    assert made.system_prompt == "be brief"
    assert [(m.author_id, m.author, m.train) for m in made.messages] == [
        ("user", "", False),
        ("assistant", "", True),
    ]
