"""The one thread that owns the model: it takes requests in, keeps time and hands out text.

Each round lets go of who left or ran out of time, starts at most one new answer, so that the
others never wait for two prompts, and writes one token of every answer.
"""

import atexit
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from discord_lora.hardware import is_out_of_memory
from discord_lora.inference.backend import Busy, GenerationFailed, Request, TooSlow
from discord_lora.inference.batch import Answer, Batch, NoNumbersError
from discord_lora.inference.prompts import Prompts, TextStream
from discord_lora.inference.reply_text import ReplyText
from discord_lora.inference.token_choice import Chooser
from discord_lora.inference.waiting_line import WaitingLine

log = logging.getLogger(__name__)

Delivered = str | Exception | None
"""A piece of text, what went wrong, or None at the end."""

PEACEFUL_STEPS = 2000
"""After so many without an error one more answer at a time is tried, up to the setting."""

SECONDS_TO_CLOSE = 30.0
"""A forward pass that is running cannot be interrupted; a long prompt takes seconds on a CPU."""


@dataclass(eq=False, slots=True)
class Ticket:
    """A request on its way."""

    request: Request
    deliver: Callable[[Delivered], object]
    deadline: float
    use_adapter: bool = True
    cancelled: bool = False
    begun: bool = False
    """True once there was a first word."""
    alone_in_vain: bool = False
    """True if memory ran out although nobody else was there."""
    writing: "_Writing | None" = None

    @property
    def addressed(self) -> bool:
        return self.request.addressed


@dataclass(frozen=True, slots=True)
class _Writing:
    """What an answer has once its prompt is rendered. It survives a second start."""

    answer: Answer
    stream: TextStream
    text: ReplyText


@dataclass(slots=True)
class Counts:
    """What was done since the start."""

    replies: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Worker:
    """Drives a batch. Every public method may be called from any thread."""

    def __init__(
        self,
        batch: Batch,
        prompts: Prompts,
        *,
        most_running: int,
        most_waiting: int,
        clock: Callable[[], float],
    ) -> None:
        self.batch = batch
        self.prompts = prompts
        self.most_running = most_running
        """At a time: as many as the settings say, or fewer since memory last ran out."""
        self.counts = Counts()
        self._clock = clock
        self._wished_running = most_running
        self._steps_in_peace = 0
        self._line: WaitingLine[Ticket] = WaitingLine(most_waiting)
        self._running: list[Ticket] = []
        self._jobs: list[tuple[Callable[[], None], Future[None]]] = []
        self._closed = False
        self._wake = threading.Condition()
        # A daemon, so that the end of a script does not wait for it; and closed before the
        # interpreter goes, because a thread that has used torch may keep it from going.
        self._thread = threading.Thread(target=self._work, name="replies", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, ticket: Ticket) -> None:
        """Queue a request; somebody may be turned away for it."""
        with self._wake:
            refused = ticket if self._closed else self._line.join(ticket)
            self._wake.notify()
        if refused is not None:
            _deliver(refused, Busy())

    def cancel(self, ticket: Ticket) -> None:
        """Nobody reads the answer any more."""
        ticket.cancelled = True
        with self._wake:
            self._wake.notify()

    def do(self, job: Callable[[], None]) -> "Future[None]":
        """Let the thread do something while no answer is in the making; new ones wait for it."""
        done: Future[None] = Future()
        with self._wake:
            self._jobs.append((job, done))
            self._wake.notify()
        return done

    def close(self) -> None:
        """End what is running and wait for the thread."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(SECONDS_TO_CLOSE)
        atexit.unregister(self.close)

    # The thread ----------------------------------------------------------------------------

    def _work(self) -> None:
        while self._has_work():
            began = time.perf_counter()
            try:
                self._round()
            except Exception as error:  # a bug in here must not silence the bot for good
                self._fail(self._running, error)
            self.counts.seconds += time.perf_counter() - began
        self._say_goodbye()

    def _has_work(self) -> bool:
        """Wait for something to do; False once closed."""
        with self._wake:
            while not (self._closed or self._running or self._jobs or len(self._line)):
                self._wake.wait()
            return not self._closed

    def _round(self) -> None:
        self._let_go()
        if self._jobs and not self._running:
            self._do_jobs()
        ticket = self._next()
        if ticket is not None:
            self._start(ticket)
        if self._running:
            self._step()

    def _let_go(self) -> None:
        now = self._clock()
        with self._wake:
            gone = [it for it in self._line if it.cancelled or now >= it.deadline]
            for ticket in gone:
                self._line.remove(ticket)
        for ticket in gone:
            _deliver(ticket, None if ticket.begun else TooSlow())
        for ticket in [it for it in self._running if it.cancelled or now >= it.deadline]:
            self._end(ticket, TooSlow())

    def _do_jobs(self) -> None:
        with self._wake:
            jobs, self._jobs = self._jobs, []
        for job, done in jobs:
            try:
                job()
            except BaseException as error:  # handed over to the thread that waits for it
                done.set_exception(error)
            else:
                done.set_result(None)

    def _next(self) -> Ticket | None:
        """Whose turn it is, if there is room for one more."""
        with self._wake:
            ticket = self._line.peek()
            if ticket is None or self._jobs or len(self._running) >= self.most_running:
                return None
            if ticket.use_adapter != self.batch.use_adapter:
                if self._running:  # one forward pass is with the adapter or without it
                    return None
                self.batch.use_adapter = ticket.use_adapter
            self._line.remove(ticket)
            return ticket

    def _start(self, ticket: Ticket) -> None:
        try:
            if ticket.writing is None:
                ticket.writing = self._prepared(ticket.request)
            self.batch.start(ticket.writing.answer)
        except Exception as error:
            if is_out_of_memory(error):
                self._make_do([*self._running, ticket], error)
            else:
                self._fail([ticket], error)
            return
        self._running.append(ticket)
        self._tell(ticket)

    def _prepared(self, request: Request) -> _Writing:
        prompts = self.prompts
        chooser = Chooser.make(request.sampling, request.seed, self.batch.device)
        return _Writing(
            Answer(request.channel, prompts.encode(request.conversation), chooser),
            TextStream(prompts),
            ReplyText(prompts.voice.name, prompts.names_of_others(request.conversation)),
        )

    def _step(self) -> None:
        try:
            lost = self.batch.step()
        except Exception as error:
            if is_out_of_memory(error):
                self._make_do(list(self._running), error)
            else:
                self._fail(self._running, error)
            return
        self._dare_more()
        for ticket in list(self._running):
            if _writing(ticket).answer in lost:
                self._lose(ticket)
            else:
                self._tell(ticket)

    def _dare_more(self) -> None:
        """What took the memory away may have let go of it."""
        self._steps_in_peace += 1
        if self.most_running < self._wished_running and self._steps_in_peace >= PEACEFUL_STEPS:
            self.most_running += 1
            self._steps_in_peace = 0

    def _tell(self, ticket: Ticket) -> None:
        """Hand out what the newest token brought, and end the answer if it was the last."""
        writing = _writing(ticket)
        token = writing.answer.token_ids[-1]
        self.counts.tokens += 1
        if token in self.prompts.end_ids:
            self._end(ticket)
            return
        self._show(ticket, writing.text.feed(writing.stream.feed(token)))
        is_full = writing.answer.written >= ticket.request.sampling.max_reply_tokens
        if writing.text.ended or is_full:
            self._end(ticket)

    def _show(self, ticket: Ticket, text: str) -> None:
        if text:
            ticket.begun = True
            _deliver(ticket, text)

    def _end(self, ticket: Ticket, if_not_begun: Exception | None = None) -> None:
        writing = _writing(ticket)
        self.batch.finish(writing.answer)
        self._running.remove(ticket)
        self._show(ticket, writing.text.close())
        ended_well = ticket.begun or if_not_begun is None
        self.counts.replies += ended_well and not ticket.cancelled
        _deliver(ticket, None if ended_well else if_not_begun)

    # When something goes wrong -------------------------------------------------------------

    def _make_do(self, tickets: list[Ticket], error: Exception) -> None:
        """Memory ran out: forget the quiet channels and let half as many go on from where they
        are, the others after them."""
        self.batch.caches.clear()
        self._abandon()
        self.most_running = max(1, len(tickets) // 2)
        self._steps_in_peace = 0
        if len(tickets) == 1:
            if tickets[0].alone_in_vain:
                self._fail(tickets, error)
                return
            tickets[0].alone_in_vain = True
        log.warning(
            "Memory ran out with %d answers; %d at a time.", len(tickets), self.most_running
        )
        with self._wake:
            for ticket in reversed(tickets):
                self._line.put_back(ticket)

    def _lose(self, ticket: Ticket) -> None:
        """One answer cannot go on; the others can, and nothing of it is kept."""
        self.batch.drop(_writing(ticket).answer)
        self._running.remove(ticket)
        self._fail([ticket], NoNumbersError())

    def _fail(self, tickets: Iterable[Ticket], error: Exception) -> None:
        failed = list(tickets)
        log.error("Generating %d answers failed.", len(failed), exc_info=error)
        if any(ticket in self._running for ticket in failed):
            self._abandon()
        for ticket in failed:
            _deliver(ticket, GenerationFailed(type(error).__name__))

    def _abandon(self) -> None:
        self.batch.abandon()
        self._running = []

    def _say_goodbye(self) -> None:
        with self._wake:
            left = [*self._running, *self._line]
            jobs = self._jobs
        self.batch.abandon()
        self.batch.caches.clear()
        for ticket in left:
            _deliver(ticket, None if ticket.begun else Busy())
        for _, done in jobs:
            done.cancel()


def _writing(ticket: Ticket) -> _Writing:
    if ticket.writing is None:
        raise AssertionError("the answer was not started")
    return ticket.writing


def _deliver(ticket: Ticket, what: Delivered) -> None:
    # An event loop that was closed takes nothing, and nobody waits there.
    with suppress(RuntimeError):
        ticket.deliver(what)
