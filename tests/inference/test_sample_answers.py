"""What a model that learns is asked: the very prompts of training, always the same ones."""

import numpy as np
import pytest
import torch

from discord_lora.conversations.examples import Limits, TokenizedExample, make_examples
from discord_lora.conversations.prompt_format import PromptFormat, persona_voice, server_voice
from discord_lora.inference.sample_answers import (
    LONGEST_ANSWER,
    LONGEST_PROMPT,
    Question,
    SampleAnswers,
    choose_questions,
)
from fakes import (
    CHATML,
    FAMILIES,
    GEMMA_LIKE,
    MISTRAL_LIKE,
    always_says,
    conversation,
    make_model,
    make_model_of,
    make_tokenizer,
    say,
)

TOKENIZER = make_tokenizer()
ADA = persona_voice("Ada", "id-Ada")
TALK = (
    say("Bob", "hello there", minute=0),
    say("Ada", "I am fine", minute=1),
    say("Cy", "what's up", minute=2),
    say("Ada", "how are you", minute=3),
    say("Bob", "you", minute=4),
)


def examples_of(*conversations, voice=ADA, tokenizer=TOKENIZER):
    return make_examples(conversations, PromptFormat(tokenizer, voice), Limits(1024, 32))


def an_example(length, trained):
    """Meaningless tokens, those from `trained` on trained."""
    mask = np.arange(length) >= trained
    return TokenizedExample("c", ("m",), np.arange(7, 7 + length, dtype=np.int32), mask, 1)


def many(count=30):
    talk = [
        conversation(
            say("Bob", f"hello there {'you ' * (n % 9)}", minute=0),
            say("Ada", f"I am fine {n} thank you", minute=1),
            id=f"c{n}",
        )
        for n in range(count)
    ]
    return examples_of(*talk)


@pytest.mark.parametrize("template", [CHATML, MISTRAL_LIKE, GEMMA_LIKE, None])
@pytest.mark.parametrize("voice", [ADA, server_voice("Bot")])
def test_a_question_is_the_prompt_that_a_chat_would_send(template, voice):
    tokenizer = make_tokenizer(template)
    form = PromptFormat(tokenizer, voice)
    upto = TALK if voice.kind == "server" else TALK[:4]
    (example,) = examples_of(conversation(*upto), voice=voice, tokenizer=tokenizer)
    question = Question.last_of(example)
    if voice.kind == "persona":
        assert list(question.prompt_ids) == form.encode_prompt(conversation(*upto[:-1]))
    said = form.decode_reply(question.real_ids)
    assert said == upto[-1].content
    assert question.real_ids[-1] == form.end_of_turn_id
    assert len(question.prompt_ids) + len(question.real_ids) <= len(example)


def test_several_messages_of_one_turn_are_one_answer():
    (example,) = examples_of(
        conversation(say("Bob", minute=0), say("Ada", "I am", minute=1), say("Ada", "up", minute=2))
    )
    question = Question.last_of(example)
    assert TOKENIZER.decode(question.real_ids, skip_special_tokens=True) == "I am\nup"


def test_what_has_nothing_before_it_is_no_question():
    assert Question.last_of(an_example(5, 0)) is None
    assert Question.last_of(an_example(5, 5)) is None


def test_questions_are_spread_and_always_the_same():
    examples = many()
    chosen = choose_questions(examples, 3)
    assert chosen == choose_questions(examples, 3)
    asked = [Question.last_of(example) for example in examples]
    places = [asked.index(question) for question in chosen]
    assert [place // 10 for place in places] == [0, 1, 2], "one of each third"
    assert choose_questions(examples, 0) == []
    assert choose_questions([], 3) == []
    assert len(choose_questions(examples[:2], 3)) == 2


def test_questions_prefer_a_few_words_after_a_short_prompt():
    odd = [an_example(900, 890), an_example(20, 18), an_example(90, 30)]
    good = [an_example(60, 50), an_example(70, 58)]
    assert choose_questions([*odd, *good], 2) == [Question.last_of(it) for it in good]
    assert len(choose_questions([*odd, *good], 4)) == 4, "rather than none"


def answers_of(model, examples, count=3, tokenizer=TOKENIZER, voice=ADA):
    return SampleAnswers(lambda: tokenizer, voice, examples, count)(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_what_the_library_writes_alone(family):
    model = make_model_of(family)
    examples = many()
    answers = answers_of(model, examples)
    for answer, question in zip(answers, choose_questions(examples, 3), strict=True):
        ids = torch.tensor([question.prompt_ids])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
            max_new_tokens=LONGEST_ANSWER, eos_token_id=TOKENIZER.eos_token_id,
        )  # fmt: skip
        written = made[0, ids.shape[1] :]
        assert answer["answer"] == TOKENIZER.decode(written, skip_special_tokens=True).strip()


def test_question_and_real_answer_are_shown_without_markup():
    (answer,) = answers_of(make_model(), examples_of(conversation(*TALK[:4])))
    assert answer["prompt"] == "Bob: hello there\nI am fine\nCy: what's up"
    assert answer["real"] == "how are you"


def test_the_end_of_the_turn_ends_an_answer():
    model = make_model()
    always_says(model, TOKENIZER.eos_token_id)
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    answers = answers_of(model, many())
    assert [it["answer"] for it in answers] == ["", "", ""]
    assert len(passes) == 3, "the prompts were read, and nothing after them"


@pytest.mark.parametrize("passes", [0, 4])
def test_an_answer_ends_where_the_scores_are_no_numbers(passes):
    model = make_model()
    always_says(model, TOKENIZER(" are").input_ids[0])
    left = iter(range(passes))
    model.lm_head.register_forward_hook(
        lambda _head, _inputs, scores: None if next(left, None) is not None else scores * torch.nan
    )
    answers = answers_of(model, many())
    assert [it["answer"] for it in answers] == (["are are"] * 3 if passes else [""] * 3)


def test_a_long_prompt_is_cut_where_a_turn_begins():
    long = conversation(*(say("Bob" if n % 2 else "Ada", minute=n) for n in range(200)))
    (*_, example) = make_examples([long], PromptFormat(TOKENIZER, ADA), Limits(1024, 32))
    model = make_model()
    read = []
    model.register_forward_pre_hook(
        lambda _model, _args, options: read.append(options["input_ids"][0].tolist()),
        with_kwargs=True,
    )
    answers_of(model, [example])
    prompt = Question.last_of(example).prompt_ids
    assert len(prompt) > LONGEST_PROMPT >= len(read[0]) > LONGEST_PROMPT - 40
    assert prompt[-len(read[0]) :] == tuple(read[0])
    assert prompt[-len(read[0]) - 1] == TOKENIZER.eos_token_id


def test_neither_mode_nor_random_numbers_change():
    model = make_model().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state()
    answers_of(model, many())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), before)

    def fail(*_):
        raise MemoryError

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        answers_of(model, many())
    hook.remove()
    assert [module.training for module in model.modules()] == modes


def test_without_questions_no_tokenizer_is_loaded():
    assert SampleAnswers(lambda: pytest.fail("loaded"), ADA, [], 3)(make_model()) == []
