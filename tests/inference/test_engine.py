import threading

import pytest
import torch

from discord_lora.conversations.prompt_format import persona_voice, ready_voice, server_voice
from discord_lora.inference.dialogue import Dialogue
from discord_lora.inference.engine import ReplyEngine, Sampling
from fakes import chatter, conversation, make_model, make_tokenizer, say

GREEDY = Sampling(temperature=0, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=12)
FREE = Sampling(temperature=1, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=12)


def make_engine(voice=None, max_prompt_tokens=400):
    voice = voice or persona_voice("Ada", "id-Ada")
    return ReplyEngine(make_model(), make_tokenizer(), voice, max_prompt_tokens=max_prompt_tokens)


def always_says(engine, token_id):
    """Let the model's head prefer one token, whatever was said."""
    head = torch.nn.Linear(32, 400)
    torch.nn.init.zeros_(head.weight)
    head.bias.data.zero_()
    head.bias.data[token_id] = 100.0
    engine.model.lm_head = head


def word(engine):
    """A token that stands for a word of its own, so that it is streamed at once."""
    (token,) = engine.prompt_format.tokenizer(" are").input_ids
    return token


def test_a_reply_streams_and_has_the_tokens_asked_for():
    engine = make_engine()
    always_says(engine, word(engine))
    pieces = list(engine.reply(conversation(say("Bob", "hi")), GREEDY))
    assert len(pieces) > 5
    assert "".join(pieces) == " ".join(["are"] * 12)


def test_the_end_of_turn_ends_the_reply():
    engine = make_engine()
    always_says(engine, engine.prompt_format.end_of_turn_id)
    assert "".join(engine.reply(conversation(say("Bob", "hi")), GREEDY)) == ""


def test_the_same_seed_gives_the_same_reply():
    engine = make_engine()
    talk = conversation(say("Bob", "hi"))
    first, again, other = ("".join(engine.reply(talk, FREE, seed=s)) for s in (1, 1, 2))
    assert first == again != other


def test_a_closed_stream_stops_the_generation():
    engine = make_engine()
    always_says(engine, word(engine))
    before = threading.active_count()
    stream = engine.reply(
        conversation(say("Bob", "hi")),
        Sampling(temperature=0, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=100_000),
    )
    next(stream)
    stream.close()
    assert threading.active_count() == before


def test_a_failed_generation_reaches_whoever_waits_for_it():
    engine = make_engine()
    engine.model.lm_head = None
    with pytest.raises(TypeError):
        list(engine.reply(conversation(say("Bob", "hi")), GREEDY))


@pytest.mark.parametrize("voice", [persona_voice("Ada", "id-Ada"), server_voice("Bot")])
def test_a_long_history_is_cut_from_its_old_end(voice):
    engine = make_engine(voice, max_prompt_tokens=120)
    history = [*chatter(200), say("Bob", "newest", minute=500)]
    prompt = engine.prompt(conversation(*history))
    text = engine.prompt_format.tokenizer.decode(prompt)
    assert len(prompt) <= 120
    assert "newest" in text
    assert text.startswith(("<|im_start|>system", "A Discord chat"))


def test_a_dialogue_is_the_prompt_that_training_would_see():
    engine = make_engine()
    always_says(engine, engine.prompt_format.tokenizer("x").input_ids[0])
    dialogue = Dialogue(engine, GREEDY, name="Bob")
    assert "".join(dialogue.say("hi")) == "x" * 12
    assert "".join(dialogue.say("and?")) == "x" * 12
    said = conversation(
        say("Bob", "hi"), say("Ada", "x" * 12, minute=1), say("Bob", "and?", minute=2)
    )
    dialogue.messages.pop()
    assert engine.prompt(conversation(*dialogue.messages)) == engine.prompt(said)


def test_retry_forgets_the_last_reply_and_reset_everything():
    engine = make_engine()
    always_says(engine, engine.prompt_format.tokenizer("x").input_ids[0])
    dialogue = Dialogue(engine, GREEDY, name="Bob")
    assert dialogue.retry() is None
    list(dialogue.say("hi"))
    list(dialogue.retry())
    assert [m.author for m in dialogue.messages] == ["Bob", "Ada"]
    dialogue.name = "Cy"
    list(dialogue.say("ho"))
    assert [m.author for m in dialogue.messages] == ["Bob", "Ada", "Cy", "Ada"]
    dialogue.reset()
    assert dialogue.messages == []


def test_what_was_heard_before_an_interruption_was_said():
    engine = make_engine()
    always_says(engine, engine.prompt_format.tokenizer("x").input_ids[0])
    dialogue = Dialogue(engine, GREEDY, name="Bob")
    stream = dialogue.say("hi")
    heard = next(stream)
    stream.close()
    assert dialogue.messages[-1].content == heard


def test_ready_conversations_are_talked_to_without_names():
    engine = make_engine(ready_voice("Bot"))
    dialogue = Dialogue(engine, GREEDY, name="Bob")
    list(dialogue.say("hi"))
    text = engine.prompt_format.tokenizer.decode(engine.prompt(conversation(dialogue.messages[0])))
    assert "Bob" not in text and "user\nhi" in text
