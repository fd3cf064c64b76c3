"""The batch against `transformers.generate`, which answers one conversation at a time."""

import itertools

import pytest
import torch

from discord_lora.inference.backend import Sampling
from discord_lora.inference.batch import Answer, Batch, NoNumbersError
from discord_lora.inference.kv_cache import BatchCache, ChannelCaches, Read
from discord_lora.inference.token_choice import Chooser, choose
from fakes import FAMILIES, make_model, make_model_of

GREEDY = Sampling(temperature=0, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=12)
FREE = Sampling(temperature=1, top_p=0.9, min_p=0.01, repetition_penalty=1.1, max_reply_tokens=12)
CPU = torch.device("cpu")


def random_prompt(length, seed=0):
    generator = torch.Generator().manual_seed(seed + 1000 * length)
    return torch.randint(7, 400, (length,), generator=generator).tolist()


def an_answer(prompt, channel="a", sampling=GREEDY, seed=1):
    return Answer(channel, list(prompt), Chooser.make(sampling, seed, CPU))


def a_batch(model=None, cached_bytes=10**8):
    return Batch(model or make_model(), ChannelCaches(cached_bytes))


def write(batch, answer, tokens):
    """Let one answer be written until it has so many tokens; it stays in the batch."""
    if answer not in batch.answers:
        batch.start(answer)
    while answer.written < tokens:
        batch.step()
    return answer.token_ids[answer.prompt_length :]


def generated(model, prompt, tokens):
    """What the library writes for this prompt, alone."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_that_come_and_go_are_what_the_library_writes_alone(family):
    """Of different lengths, joining and leaving at different times, longer than the window."""
    model = make_model_of(family)
    batch = a_batch(model)
    prompts = [random_prompt(length) for length in (5, 60, 33, 90, 12)]
    wanted = [generated(model, prompt, 40) for prompt in prompts]
    answers = [an_answer(prompt, channel=str(n)) for n, prompt in enumerate(prompts)]
    lengths = dict(zip(answers, (40, 9, 21, 33, 40), strict=True))
    coming = list(answers)
    for step in itertools.count():
        if coming and step % 4 == 0:
            batch.start(coming.pop(0))
        for answer in [it for it in batch.answers if it.written >= lengths[it]]:
            batch.finish(answer)
        if not batch.answers:
            break
        batch.step()
    assert not coming
    for answer, tokens in zip(answers, wanted, strict=True):
        assert answer.token_ids[answer.prompt_length :] == tokens[: lengths[answer]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_turn_reads_only_what_is_new(family):
    model = make_model_of(family)
    batch = a_batch(model)
    first = an_answer(random_prompt(50))
    write(batch, first, 10)
    batch.finish(first)
    assert batch.prefilled_tokens == 50
    following = [*first.token_ids[:57], *random_prompt(15, seed=3)]
    second = an_answer(following)
    assert write(batch, second, 20) == generated(model, following, 20)
    assert batch.prefilled_tokens == 50 + 15


def test_another_beginning_is_read_anew():
    batch = a_batch()
    first = an_answer(random_prompt(30))
    write(batch, first, 2)
    batch.finish(first)
    other = random_prompt(31, seed=9)
    assert write(batch, an_answer(other), 8) == generated(batch.model, other, 8)
    assert batch.prefilled_tokens == 30 + 31


def test_the_same_prompt_again_reads_one_token():
    batch = a_batch()
    prompt = random_prompt(30)
    for _ in range(2):
        answer = an_answer(prompt)
        assert write(batch, answer, 5) == generated(batch.model, prompt, 5)
        batch.finish(answer)
    assert batch.prefilled_tokens == 30 + 1


def test_channels_do_not_read_each_others_caches():
    batch = a_batch()
    prompt = random_prompt(30)
    for channel in "ab":
        batch.start(an_answer(prompt, channel))
    assert batch.prefilled_tokens == 60


def test_caches_stay_within_their_bytes_and_the_longest_unused_goes_first():
    batch = a_batch()
    per_token = batch.bytes_per_token()
    batch.caches.most_bytes = 100 * per_token
    for channel in "abc":
        answer = an_answer(random_prompt(39), channel)
        batch.start(answer)
        batch.step()
        batch.finish(answer)
        assert batch.caches.bytes <= batch.caches.most_bytes
    assert len(batch.caches) == 2
    before = batch.prefilled_tokens
    for channel, read in (("c", 1), ("a", 39)):
        batch.start(an_answer(random_prompt(39), channel))
        assert batch.prefilled_tokens == before + read
        before = batch.prefilled_tokens


def test_one_answer_too_long_for_the_caches_is_not_kept():
    batch = a_batch(cached_bytes=10)
    answer = an_answer(random_prompt(20))
    batch.start(answer)
    batch.finish(answer)
    assert (len(batch.caches), batch.caches.bytes) == (0, 0)


def test_with_a_seed_an_answer_is_the_same_alone_and_in_company():
    prompt = random_prompt(40)
    alone = write(a_batch(), an_answer(prompt, sampling=FREE, seed=7), 30)
    batch = a_batch()
    mine = an_answer(prompt, "mine", FREE, seed=7)
    batch.start(an_answer(random_prompt(70), "x", FREE, seed=8))
    batch.start(an_answer(random_prompt(10), "y", GREEDY))
    batch.start(mine)
    assert write(batch, mine, 30) == alone
    assert write(a_batch(), an_answer(prompt, sampling=FREE, seed=8), 30) != alone


def test_a_failed_step_can_be_repeated():
    model = make_model()
    batch = a_batch(model)
    prompts = [random_prompt(20), random_prompt(31)]
    answers = [an_answer(prompt, str(n)) for n, prompt in enumerate(prompts)]
    for answer in answers:
        batch.start(answer)
    batch.step()

    def fail(*_inputs):
        raise MemoryError

    hook = model.model.layers[1].register_forward_pre_hook(fail)
    for _ in range(2):
        with pytest.raises(MemoryError):
            batch.step()
    hook.remove()
    for answer, prompt in zip(answers, prompts, strict=True):
        assert write(batch, answer, 20)[:20] == generated(model, prompt, 20)


def test_an_answer_that_cannot_begin_leaves_no_row():
    batch = a_batch()
    prompt, others = random_prompt(20), random_prompt(31)
    answer, broken = an_answer(prompt, "a"), an_answer(others, "b")
    batch.start(answer)
    broken.chooser = None
    for _ in range(2):
        with pytest.raises(AttributeError):
            batch.start(broken)
        assert batch.answers == [answer] and broken.written == 0
        batch.step()
    batch.start(an_answer(others, "b"))
    assert write(batch, answer, 20) == generated(batch.model, prompt, 20)


@pytest.mark.parametrize("sampling", [GREEDY, FREE])
def test_scores_that_are_no_numbers_give_no_token_to_their_row_alone(sampling):
    logits = torch.randn(3, 400, generator=torch.Generator().manual_seed(1))
    alone = choose(logits[[2]], [Chooser.make(sampling, 5, CPU)], [[1]])
    logits[1, 7] = float("nan")
    choosers = [Chooser.make(sampling, 5, CPU) for _ in range(3)]
    chosen = choose(logits, choosers, [[1]] * 3)
    assert [token is None for token in chosen] == [False, True, False]
    assert chosen[2:] == alone


def test_what_overflowed_is_not_kept_for_the_next_turn():
    batch = a_batch()
    hook = batch.model.lm_head.register_forward_hook(lambda _head, _in, out: out * float("nan"))
    with pytest.raises(NoNumbersError):
        batch.start(an_answer(random_prompt(9)))
    hook.remove()
    answer = an_answer(random_prompt(9))
    batch.start(answer)
    hook = batch.model.lm_head.register_forward_hook(lambda _head, _in, out: out * float("nan"))
    assert batch.step() == [answer]
    batch.drop(answer)
    hook.remove()
    assert (batch.answers, len(batch.caches), batch._cache.layers) == ([], 0, [])


def test_buffers_shrink_again_and_are_freed():
    batch = a_batch()
    cache = batch._cache
    long, short = an_answer(random_prompt(300), "long"), an_answer(random_prompt(10), "short")
    batch.start(long)
    batch.start(short)
    assert cache.end - cache.begin == 300
    batch.finish(long)
    batch.step()
    assert cache.end - cache.begin == 11
    batch.finish(short)
    assert cache.layers == []


def test_an_overflow_in_one_answer_does_not_reach_the_next_in_its_place():
    cache = BatchCache()

    def layers(tokens, value):
        return [(torch.full((1, 2, tokens, 4), value), torch.full((1, 2, tokens, 4), value))]

    cache.add(layers(50, float("inf")))
    cache.add(layers(60, 1.0))
    cache.remove(0)
    cache.add(layers(5, 2.0))
    keys, _ = cache.layers[0].update(torch.zeros(2, 2, 1, 4), torch.zeros(2, 2, 1, 4))
    assert keys.isfinite().all()
    mask = cache.padding_mask(CPU)
    assert mask.sum(-1).tolist() == [61, 6]
    assert (keys[1, 0, mask[1], 0] == torch.tensor([2.0] * 5 + [0.0])).all()


def test_what_was_read_begins_a_cache_of_any_length():
    pair = (torch.arange(10.0).reshape(1, 1, 10, 1), torch.zeros(1, 1, 10, 1))
    read = Read(range(10), [pair, None])
    cache = read.start(4)
    assert cache.layers[0].keys.flatten().tolist() == [0, 1, 2, 3]
    assert cache.get_seq_length() == 4
    assert not cache.layers[1].is_initialized


@pytest.mark.parametrize(
    "sampling",
    [GREEDY, FREE, Sampling(0.7, 1.0, 0.2, 1.0, 5), Sampling(0.0, 0.5, 0.0, 1.3, 5)],
)
def test_tokens_are_chosen_as_the_library_does(sampling):
    """What may be chosen is what the library's filters leave."""
    model = make_model(seed=3)
    prompt = random_prompt(25)
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "repetition_penalty": sampling.repetition_penalty}
    if sampling.temperature:
        options |= {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "min_p": sampling.min_p,
            "top_k": 0,
        }
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1,
        eos_token_id=None,
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
        **options,
    )
    possible = out.scores[0][0].isfinite()
    logits = model(ids).logits[:, -1]
    seen = {choose(logits, [Chooser.make(sampling, seed, CPU)], [prompt])[0] for seed in range(300)}
    assert all(possible[token] for token in seen)
    if sampling.temperature == 0:
        assert seen == {int(out.sequences[0, -1])}
    else:
        assert len(seen) > 1
