"""When a request that failed is sent again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from .errors import BstError, MessageTooLargeError, ResourceExhaustedError, UnavailableError


@dataclass(frozen=True)
class RetryPolicy:
    """Full queues and servers that are not there are tried again; a stream only before its first token.

    The wait is the server's grpc-retry-pushback-ms, or its RetryInfo, or else an exponential backoff
    with jitter. A negative pushback and a message above the limit end the attempts.
    """

    max_attempts: int = 5  # the first one included
    initial_backoff: float = 0.2  # seconds
    max_backoff: float = 10.0  # seconds
    multiplier: float = 2.0

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or self.initial_backoff < 0 or self.max_backoff < 0 or self.multiplier < 1:
            raise ValueError(f"{self}: max_attempts and multiplier are at least 1, backoffs at least 0")


class Attempts:
    """The attempts of one request: how much time is left, and whether and when to try again."""

    def __init__(self, policy: RetryPolicy | None, timeout: float | None) -> None:
        self._policy = policy
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._made = 1
        self._backoff = 0.0 if policy is None else min(policy.initial_backoff, policy.max_backoff)  # of the next wait

    def seconds_left(self) -> float | None:
        return None if self._deadline is None else self._deadline - time.monotonic()

    def delay_after(self, error: BstError) -> float | None:
        """Seconds to wait before the next attempt, which it counts; None: `error` is final."""
        policy = self._policy
        if policy is None or self._made >= policy.max_attempts or not _may_retry(error):
            return None
        if error.pushback_ms is not None:
            delay = error.pushback_ms / 1000
        elif error.retry_delay is not None:
            delay = error.retry_delay
        else:
            delay = self._backoff * random.uniform(0.8, 1.2)
        left = self.seconds_left()
        if left is not None and delay >= left:
            return None
        self._made += 1
        self._backoff = min(self._backoff * policy.multiplier, policy.max_backoff)  # a power would overflow
        return delay


def _may_retry(error: BstError) -> bool:
    if error.pushback_ms is not None and error.pushback_ms < 0:
        return False
    if isinstance(error, MessageTooLargeError):
        return False
    return isinstance(error, (UnavailableError, ResourceExhaustedError))
