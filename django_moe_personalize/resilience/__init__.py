"""Time and threads: how long a call may take, whether it may be made, and in which thread. Without Django.

``deadline`` has Deadline and Backoff, ``breaker`` the circuit breaker, and ``pool`` the bounded pool of threads.
"""

from django_moe_personalize.resilience.breaker import CircuitBreaker
from django_moe_personalize.resilience.deadline import MAX_GATE_SECONDS, Backoff, Deadline
from django_moe_personalize.resilience.pool import PoolBusy, WorkerPool

__all__ = ["MAX_GATE_SECONDS", "Backoff", "CircuitBreaker", "Deadline", "PoolBusy", "WorkerPool"]
