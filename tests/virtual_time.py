"""Virtual time. State machines move it in quarters of a second, which floats hold exactly, so models compare equal."""

from hypothesis import settings
from hypothesis import strategies as st

MACHINE = settings(stateful_step_count=50, deadline=None)
"""How long each state machine runs."""


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def quarters(seconds):
    """Return a strategy for times up to ``seconds``."""
    return st.integers(0, seconds * 4).map(lambda quarter: quarter / 4)
