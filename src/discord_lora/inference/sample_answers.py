"""The same held-out questions again and again while a model learns: one reads how its voice grows.

A question is what stood before the last trained turn of a held-out example, token for token as
training rendered it, so nothing has to be rendered anew:

    <|im_start|>system ... user  Ada: anyone up?<|im_end|> ... assistant | always<|im_end|>
    what is asked, the prompt                                            | the real answer
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from discord_lora.conversations.examples import TokenizedExample
from discord_lora.conversations.prompt_format import PromptFormat, Voice
from discord_lora.inference.backend import Sampling
from discord_lora.inference.batch import Answer, Batch, NoNumbersError
from discord_lora.inference.kv_cache import ChannelCaches
from discord_lora.inference.token_choice import Chooser

LONGEST_ANSWER = 16
"""Tokens, about a dozen words: enough to hear a voice. What it costs comes at every checkpoint."""

LONGEST_PROMPT = 256
SHORTEST_REAL_ANSWER = 4
"""Tokens, the end of the turn included: `ok` shows little of a voice."""

TALK_BEFORE = 48
"""Tokens of talk that a question best has, besides what stands before every conversation."""

_SHOWN, _LONGEST_TEXT = 240, 600
"""Characters of a prompt's end and of an answer that are shown."""

_GREEDY = Sampling(
    temperature=0, top_p=1, min_p=0, repetition_penalty=1, max_reply_tokens=LONGEST_ANSWER
)


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and what was really said then, as tokens."""

    prompt_ids: tuple[int, ...]
    real_ids: tuple[int, ...]

    @classmethod
    def last_of(cls, example: TokenizedExample) -> "Question | None":
        """About the example's last trained turn; None if nothing stands before it."""
        trained = np.flatnonzero(example.trained)
        if not len(trained):
            return None
        end = int(trained[-1]) + 1
        others = np.flatnonzero(~example.trained[:end])
        begin = int(others[-1]) + 1 if len(others) else 0
        ids = example.input_ids.tolist()
        return cls(tuple(ids[:begin]), tuple(ids[begin:end])) if begin else None

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.real_ids)

    @property
    def shows_a_voice(self) -> bool:
        """A few words to compare with, after a prompt that costs little."""
        fits = SHORTEST_REAL_ANSWER <= len(self.real_ids) <= LONGEST_ANSWER
        return fits and len(self.prompt_ids) <= LONGEST_PROMPT


def choose_questions(examples: Sequence[TokenizedExample], count: int) -> list[Question]:
    """At most `count` questions, evenly spread over the examples; always the same ones.

    Of each stretch of examples it is the one with the most usual length.
    """
    found = [it for it in map(Question.last_of, examples) if it is not None]
    good = [it for it in found if it.shows_a_voice]
    others = sorted((it for it in found if not it.shows_a_voice), key=len)
    some = good + others[: max(0, count - len(good))]
    if not some or not count:
        return []
    wanted = min(len(it.prompt_ids) for it in some) + TALK_BEFORE
    count = min(count, len(some))
    stretches = [
        some[n * len(some) // count : (n + 1) * len(some) // count] for n in range(count)
    ]  # fmt: skip
    return [min(one, key=lambda it: abs(len(it.prompt_ids) - wanted)) for one in stretches]


class SampleAnswers:
    """Answers its questions with any model of the tokenizer's; greedily, so always alike."""

    def __init__(
        self,
        load_tokenizer: Callable[[], Any],
        voice: Voice,
        examples: Sequence[TokenizedExample],
        count: int,
    ) -> None:
        """`load_tokenizer` is called when the first answer is wanted."""
        self.questions = choose_questions(examples, count)
        self._load_tokenizer = load_tokenizer
        self._voice = voice
        self._format: PromptFormat | None = None

    def __call__(self, model: Any) -> list[dict[str, str]]:
        """`prompt` (its end), `real` and `answer` of each question, as text.

        Args:
            model: a causal language model of transformers or peft, whose attention obeys masks.
                Afterwards it is in the mode, training or not, in which it came.
        """
        if not self.questions:
            return []
        if self._format is None:
            self._format = PromptFormat(self._load_tokenizer(), self._voice)
        form = self._format
        ends = {form.end_of_turn_id, form.tokenizer.eos_token_id} - {None}
        prompts = [_shortened(it.prompt_ids, ends) for it in self.questions]
        modes = {module: module.training for module in model.modules()}
        try:
            answers = _write(model, prompts, ends)
        finally:
            for module, mode in modes.items():
                module.training = mode
        return [
            {
                "prompt": _shown(form, question.prompt_ids),
                "real": form.decode_reply(question.real_ids)[:_LONGEST_TEXT],
                "answer": form.decode_reply(answer)[:_LONGEST_TEXT],
            }
            for question, answer in zip(self.questions, answers, strict=True)
        ]


def _write(model: Any, prompts: Sequence[Sequence[int]], ends: set[int]) -> list[list[int]]:
    """What the model writes after each prompt, up to an end or LONGEST_ANSWER."""
    batch = Batch(model, ChannelCaches(most_bytes=0))
    device = batch.device
    answers = [
        Answer(str(n), list(prompt), Chooser.make(_GREEDY, 0, device))
        for n, prompt in enumerate(prompts)
    ]
    for answer in answers:
        with suppress(NoNumbersError):  # its answer is empty, then
            batch.start(answer)
    while True:
        for answer in list(batch.answers):
            if answer.token_ids[-1] in ends or answer.written >= LONGEST_ANSWER:
                batch.finish(answer)
        if not batch.answers:
            break
        for answer in batch.step():
            batch.drop(answer)
    return [answer.token_ids[answer.prompt_length :] for answer in answers]


def _shortened(prompt: Sequence[int], ends: set[int]) -> list[int]:
    """The end of a prompt, from the beginning of a turn on where there is one."""
    if len(prompt) <= LONGEST_PROMPT:
        return list(prompt)
    kept = list(prompt[-LONGEST_PROMPT:])
    borders = [place + 1 for place, token in enumerate(kept[:-1]) if token in ends]
    return kept[borders[0] :] if borders else kept


def _shown(form: PromptFormat, prompt: Sequence[int]) -> str:
    """The end of what was said, without what the chat template puts around it."""
    text: str = form.tokenizer.decode(
        list(prompt), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    template = form.template
    around = (template.assistant_to_user, template.user_to_assistant, template.system_to_user)
    for markup in (*around, template.system_head, template.head):
        text = text.replace(markup, "\n") if markup.strip() else text
    for token in form.tokenizer.added_tokens_decoder.values():
        text = text.replace(token.content, "") if token.special else text
    text = text.lstrip().removeprefix(form.voice.system_prompt)
    said = "\n".join(line for line in text.splitlines() if line.strip())
    return said if len(said) <= _SHOWN else "…" + said[-_SHOWN:]
