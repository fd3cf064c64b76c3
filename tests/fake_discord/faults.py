"""What goes wrong on the HTTP side: scripted failures, rate limits, and the log of requests."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass
class Request:
    """One HTTP request as it came; times in time.monotonic() seconds."""

    method: str
    path: str
    at: float
    body: Any = None
    files: list[str] = field(default_factory=list)
    query: dict[str, str] = field(default_factory=dict)
    # None while it is being answered, and for good if the answer was dropped.
    status: int | None = None
    answered_at: float | None = None


@dataclass
class Answer:
    """A finished HTTP answer. Discord's JSON has exactly this type, with no charset."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def json_answer(status: int, body: Any, headers: dict[str, str] | None = None) -> Answer:
    headers = {"Content-Type": "application/json", **(headers or {})}
    return Answer(status, json.dumps(body).encode(), headers)


class ApiError(Exception):
    """A refusal by Discord's rules: HTTP status, Discord's own code, its message."""

    def __init__(self, status: int, code: int, message: str, errors: Json | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body: Json = {"message": message, "code": code}
        if errors is not None:
            self.body["errors"] = errors


def invalid_form(where: str, code: str, message: str) -> ApiError:
    errors = {where: {"_errors": [{"code": code, "message": message}]}}
    return ApiError(400, 50035, "Invalid Form Body", errors)


@dataclass
class Fault:
    """What `FakeDiscord.fail_next` asked for; see there."""

    method: str
    path: re.Pattern[str]
    times: int
    skip: int
    status: int | None
    code: int
    retry_after: float
    is_global: bool
    via: bool
    delay: float
    drop_request: bool
    drop_answer: bool
    carried_out: bool
    hits: int = 0

    @property
    def is_spent(self) -> bool:
        return self.hits >= self.times

    @property
    def prevents(self) -> bool:
        """The request is not carried out."""
        return self.drop_request or (self.status is not None and not self.carried_out)

    def answer(self) -> Answer | None:
        """In place of the real one; None leaves that."""
        if self.status is None:
            return None
        if self.status == 429:
            return rate_limited(self.retry_after, is_global=self.is_global, via=self.via)
        if self.status in (502, 503, 504, 524):
            # They come from the proxy before Discord, which does not speak JSON.
            page = f"<html><title>{self.status}</title></html>".encode()
            return Answer(self.status, page, {"Content-Type": "text/html"})
        return json_answer(self.status, {"message": f"{self.status}: scripted", "code": self.code})


def path_pattern(path: str) -> re.Pattern[str]:
    """`*` stands for one part of a path, `**` for any number."""
    pattern = re.escape(path).replace(r"\*\*", ".*").replace(r"\*", "[^/]+")
    return re.compile(pattern)


def rate_limited(
    retry_after: float,
    *,
    is_global: bool = False,
    via: bool = True,
    headers: dict[str, str] | None = None,
) -> Answer:
    """429 by Discord has a Via header; without one it is Cloudflare that has banned the sender."""
    body = {"message": "You are being rate limited.", "retry_after": retry_after, "code": 0}
    extra = {**(headers or {}), "Retry-After": str(int(retry_after) + 1)}
    if via:
        extra["Via"] = "1.1 google"
    return json_answer(429, {**body, "global": is_global}, extra)


class Faults:
    """The queue of scripted failures, asked by each request in the order they were queued."""

    def __init__(self) -> None:
        self.queue: list[Fault] = []

    def take(self, method: str, path: str) -> Fault | None:
        for fault in self.queue:
            if fault.method in ("*", method) and fault.path.fullmatch(path):
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.hits += 1
                if fault.is_spent:
                    self.queue.remove(fault)
                return fault
        return None


# Requests a window of seconds, per bot and channel; what Discord sends in 2026 for these routes.
LIMITS: dict[str, tuple[int, float]] = {
    "POST /channels/{channel}/messages": (5, 5.0),
    "PATCH /channels/{channel}/messages/{message}": (5, 5.0),
    "DELETE /channels/{channel}/messages/{message}": (5, 1.0),
    "POST /channels/{channel}/typing": (5, 5.0),
    "PUT /channels/{channel}/messages/{message}/reactions/{emoji}/@me": (1, 0.25),
}


@dataclass
class Bucket:
    limit: int
    seconds: float
    used: int = 0
    resets_at: float = 0.0


class RateLimits:
    """Fixed windows that open with the first request; `violations` counts what came too soon."""

    def __init__(self) -> None:
        self.enforced = False
        self.limits = dict(LIMITS)
        self.violations = 0
        self._buckets: dict[tuple[int, str, str], Bucket] = {}

    def check(self, bot: int, route: str, channel: str) -> tuple[dict[str, str], Answer | None]:
        """Headers for the answer, and the refusal if there is one."""
        if not self.enforced or route not in self.limits:
            return {}, None
        bucket = self._buckets.setdefault((bot, route, channel), Bucket(*self.limits[route]))
        now = time.monotonic()
        if now >= bucket.resets_at:
            bucket.used, bucket.resets_at = 0, now + bucket.seconds
        bucket.used += 1
        left = bucket.resets_at - now
        headers = {
            "X-RateLimit-Limit": str(bucket.limit),
            "X-RateLimit-Remaining": str(max(0, bucket.limit - bucket.used)),
            "X-RateLimit-Reset": f"{time.time() + left:.3f}",
            "X-RateLimit-Reset-After": f"{left:.3f}",
            "X-RateLimit-Bucket": f"{abs(hash(route)):016x}",
        }
        if bucket.used <= bucket.limit:
            return headers, None
        self.violations += 1
        headers["X-RateLimit-Scope"] = "user"
        return headers, rate_limited(left, headers=headers)
