import pytest
import torch

from discord_lora.conversations.prompt_format import persona_voice, ready_voice
from discord_lora.inference.backend import Sampling
from discord_lora.inference.dialogue import Dialogue
from fakes import always_says, conversation, make_tokenizer, say

GREEDY = Sampling(temperature=0, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=12)
X = make_tokenizer()("x").input_ids[0]


def test_a_dialogue_is_the_prompt_that_training_would_see(make_backend):
    backend = make_backend()
    always_says(backend.batch.model, X)
    dialogue = Dialogue(backend, GREEDY, name="Bob")
    assert "".join(dialogue.say("hi")) == "x" * 12
    assert "".join(dialogue.say("and?")) == "x" * 12
    said = conversation(
        say("Bob", "hi"), say("Ada", "x" * 12, minute=1), say("Bob", "and?", minute=2)
    )
    dialogue.messages.pop()
    assert backend.prompt(conversation(*dialogue.messages)) == backend.prompt(said)


def test_the_second_turn_reads_only_what_is_new(make_backend):
    backend = make_backend()
    always_says(backend.batch.model, X)
    dialogue = Dialogue(backend, GREEDY, name="Bob")
    list(dialogue.say("hello there, how are you? I am fine"))
    before = backend.batch.prefilled_tokens
    list(dialogue.say("and?"))
    new = len(backend.prompt(conversation(*dialogue.messages[:-1]))) - before
    assert backend.batch.prefilled_tokens - before <= new


def test_retry_forgets_the_last_reply_and_reset_everything(make_backend):
    backend = make_backend()
    always_says(backend.batch.model, X)
    dialogue = Dialogue(backend, GREEDY, name="Bob")
    assert dialogue.retry() is None
    list(dialogue.say("hi"))
    list(dialogue.retry())
    assert [m.author for m in dialogue.messages] == ["Bob", "Ada"]
    dialogue.name = "Cy"
    list(dialogue.say("ho"))
    assert [m.author for m in dialogue.messages] == ["Bob", "Ada", "Cy", "Ada"]
    dialogue.reset()
    assert dialogue.messages == []


def test_what_was_heard_before_an_interruption_was_said(make_backend):
    backend = make_backend()
    always_says(backend.batch.model, X)
    dialogue = Dialogue(backend, GREEDY, name="Bob")
    stream = dialogue.say("hi")
    heard = next(stream)
    stream.close()
    assert dialogue.messages[-1].content == heard


def test_ready_conversations_are_talked_to_without_names(make_backend):
    backend = make_backend(ready_voice("Bot"))
    dialogue = Dialogue(backend, GREEDY, name="Bob")
    list(dialogue.say("hi"))
    text = backend.prompt_text(conversation(dialogue.messages[0]))
    assert "Bob" not in text and "user\nhi" in text


def test_the_base_model_answers_without_the_adapter(make_backend):
    from peft import LoraConfig, get_peft_model

    backend = make_backend()
    plain = backend.batch.model
    wanted = "".join(Dialogue(backend, GREEDY, name="Bob").say("hi"))
    torch.manual_seed(1)
    config = LoraConfig(target_modules="all-linear", init_lora_weights=False)
    adapted = make_backend(model=get_peft_model(plain, config))
    replies = []
    for use_adapter in (True, False, True, False):
        dialogue = Dialogue(adapted, GREEDY, name="Bob")
        dialogue.use_adapter = use_adapter
        replies.append("".join(dialogue.say("hi")))
    assert replies[0] == replies[2] != wanted
    assert replies[1] == replies[3] == wanted


@pytest.mark.parametrize("seed", [1, -5, 2**70])
def test_the_same_seed_gives_the_same_reply(make_backend, seed):
    free = Sampling(temperature=1, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=12)
    backend = make_backend(persona_voice("Ada", "id-Ada"))
    replies = []
    for number in (seed, seed, seed + 1):
        dialogue = Dialogue(backend, free, name="Bob")
        dialogue.seed = number
        replies.append("".join(dialogue.say("hi")))
    assert replies[0] == replies[1] != replies[2]
