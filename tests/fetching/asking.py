"""Ask a question as a page does, or as a task does."""

from collections.abc import Sequence

from django_moe_personalize.fetching import Answer, Experiences, Question, resolve, start_fetch
from django_moe_personalize.resilience import Deadline
from django_moe_personalize.runtime import get_runtime
from django_moe_personalize.visitor import Visitor


class Asked:
    """A page's question, with the answers from memory or the flight that brings the answers."""

    def __init__(self, visitor: Visitor, keys: Sequence[str]) -> None:
        runtime = get_runtime()
        answers, self.flight = start_fetch(runtime, visitor, tuple(keys))
        self.found = {key: answers[key] for key in keys if answers.get(key) is not None}

    @property
    def done(self) -> bool:
        """Whether the answer has arrived."""
        return self.flight is None or self.flight.done()

    def poll(self) -> bool:
        """See Flight.poll()."""
        return self.flight is None or self.flight.poll()

    def join(self, seconds: float) -> Experiences:
        """See Flight.join()."""
        return self.flight.join(seconds) if self.flight else self.found

    async def ajoin(self, seconds: float) -> Experiences:
        """See Flight.ajoin()."""
        return await self.flight.ajoin(seconds) if self.flight else self.found

    def release(self) -> None:
        """See Flight.release()."""
        if self.flight:
            self.flight.release()


def ask(visitor: Visitor, keys: Sequence[str], *, deadline: Deadline) -> Answer:
    """Resolve a question for which no page waits."""
    return resolve(Question(get_runtime(), visitor, tuple(keys), deadline, is_page=False))
