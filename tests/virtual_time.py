"""Time for state machines: virtual, and in quarters of a second, which floats hold exactly.

So models compare for equality.
"""

from hypothesis import settings
from hypothesis import strategies as st

MACHINE = settings(max_examples=60, stateful_step_count=50, deadline=None)
"""How long each machine is run."""


def quarters(seconds):
    """Return a strategy for times up to ``seconds``."""
    return st.integers(0, seconds * 4).map(lambda quarter: quarter / 4)
