"""The sandbox in-process: a transport with no port and no thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage.messages import Request, Response
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import FaultInjector, Faults


class SandboxTransport:
    """Carry requests to an engine, through its faults. Implements Transport; safe to use from many threads.

    ``injector.faults`` may be set at any time. ``sleep`` is how latency passes.
    """

    def __init__(
        self, engine: Engine, *, faults: Faults | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.engine = engine
        self.injector = FaultInjector(faults)
        self._sleep = sleep

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """See Transport.send(). Late answers are waited for until the deadline only, as over a network."""
        if deadline.expired:
            raise DeadlineExceeded("no time was left to ask the sandbox")
        answer = self.injector.answer(self.engine.handle, request)
        wait = answer.latency + answer.drip
        remaining = deadline.remaining()
        if remaining is not None and wait > remaining:
            self._sleep(remaining)
            raise DeadlineExceeded("the sandbox did not answer in time")
        if wait:
            self._sleep(wait)
        if answer.reset:
            raise TransportError("the sandbox reset the connection, as ordered")
        return answer.response

    def close(self) -> None:
        """See Transport.close(). There is nothing to release."""
