"""The sandbox in this process. It needs neither a port nor a thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from django_moe_personalize.exceptions import DeadlineExceeded, TransportError
from django_moe_personalize.moengage.http1 import Request, Response
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.sandbox.engine import Engine
from django_moe_personalize.sandbox.faults import FaultInjector, Faults


class SandboxTransport:
    """Pass requests to an engine and inject faults. Implements Transport. Threads may share a transport.

    Tests may set ``injector.faults`` at any time. The transport calls ``sleep`` to wait for a latency.
    """

    def __init__(
        self, engine: Engine, *, faults: Faults | None = None, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.engine = engine
        self.injector = FaultInjector(faults)
        self._sleep = sleep

    def send(self, request: Request, *, deadline: Deadline) -> Response:
        """See Transport.send(). Raises DeadlineExceeded if the latency goes beyond the deadline, as a network would."""
        if deadline.expired:
            raise DeadlineExceeded("the deadline had passed before the request to the sandbox")
        answer = self.injector.answer(self.engine.handle, request)
        wait = answer.latency + answer.drip
        remaining = deadline.remaining()
        if remaining is not None and wait > remaining:
            self._sleep(remaining)
            raise DeadlineExceeded("the sandbox did not answer before the deadline")
        if wait:
            self._sleep(wait)
        if answer.reset:
            raise TransportError("the sandbox reset the connection (a fault that was set)")
        return answer.response

    def close(self) -> None:
        """See Transport.close(). This transport has nothing to close."""
