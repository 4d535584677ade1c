"""Two processes above one site's cache, on a virtual clock, against a simple model."""

import json

from django.core.cache import caches
from django.test import override_settings
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching import cache, local_cache
from django_moe_personalize.fetching.cache import ExperienceCache
from django_moe_personalize.fetching.shared import build_key
from django_moe_personalize.moengage.types import DataSource
from tests.fetching.virtual_cache import GARBAGE, VIRTUAL, build, server

TTL, LIFETIME, SKEW = 60_000, 600_000, 5_000
VISITORS = ("ann", "ben")
KEYS = ("hero", "promo")

processes = st.sampled_from([0, 1])
visitors = st.sampled_from(VISITORS)
keys_asked = st.lists(st.sampled_from(KEYS), min_size=1, unique=True)
# By number: some values are too long to be printed.
garbage = st.integers(0, len(GARBAGE) - 1)
contents = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 2), min_size=1)


def build_answer(key, content):
    """Return the answer number ``content``; 0 is the absent one."""
    return build(key, Title=content, list=[content]) if content else None


class CacheMachine(RuleBasedStateMachine):
    """The two processes and the server, and what each of the three must hold: key → (when, which content)."""

    @initialize()
    def start(self):
        """Begin with empty caches."""
        self.site = override_settings(CACHES=VIRTUAL)
        self.site.enable()
        server.__init__()
        self.processes = [self.build_process(), self.build_process()]
        self.memory = [{visitor: {} for visitor in VISITORS} for _ in self.processes]
        self.stored = {visitor: {} for visitor in VISITORS}
        self.expires = dict.fromkeys(VISITORS, 0)
        # Until when the server is sure to have a body; and bodies that it may lose at any time.
        self.bodies_until = {}
        self.doubtful = set()

    def teardown(self):
        """Restore the settings."""
        if hasattr(self, "site"):
            self.site.disable()

    def build_process(self):
        """Return a process that remembers nothing."""
        return ExperienceCache(get_settings(), clock=server.time)

    @property
    def now(self):
        """Milliseconds."""
        return int(server.now * 1000)

    def select_usable(self, answers):
        """Return the usable answers among ``answers``."""
        return {key: answer for key, answer in answers.items() if self.now - LIFETIME <= answer[0] <= self.now + SKEW}

    def check(self, known, process, visitor, keys):
        """Compare cached answers with the model: correct, complete, and fresh if they are young."""
        expected = self.select_usable(self.memory[process][visitor])
        assert {key: get_content(known.answers[key]) for key in known.answers} == {
            key: content for key, (_, content) in expected.items()
        }
        fresh = {key for key, (at, _) in expected.items() if self.now - at < TTL}
        assert known.due == tuple(key for key in keys if key not in fresh)

    @rule(process=processes, visitor=visitors, answers=contents, alone=st.booleans())
    def store(self, process, visitor, answers, alone):
        """Add answers to the memory of a process, or to its memory and the site's cache."""
        known = self.select_usable(self.memory[process][visitor])
        known |= {key: (self.now, content) for key, content in answers.items()}
        self.memory[process][visitor] = known
        before, experiences = len(server.calls), {key: build_answer(key, number) for key, number in answers.items()}
        if alone:
            self.processes[process].keep(visitor, experiences)
            assert len(server.calls) == before
        else:
            self.processes[process].write(visitor, experiences)
            self.stored[visitor], self.expires[visitor] = dict(known), self.now + LIFETIME
            self.bodies_until |= dict.fromkeys(answers.items(), self.now + LIFETIME)

    @rule(process=processes, visitor=visitors, keys=keys_asked)
    def read(self, process, visitor, keys):
        """Ask for keys: the server is asked only if some of them are due, and at most twice."""
        before, peeked = len(server.calls), self.processes[process].peek(visitor, keys)
        self.check(peeked, process, visitor, keys)
        known = self.processes[process].read(visitor, keys)
        assert len(server.calls) - before in ((1, 2) if peeked.due else (0,))
        memory = self.memory[process][visitor] = self.select_usable(self.memory[process][visitor])
        if peeked.due and self.now < self.expires[visitor]:
            for key, (at, content) in self.select_usable(self.stored[visitor]).items():
                found = key in known.answers and get_content(known.answers[key]) == content
                if (key not in memory or at >= memory[key][0]) and (found or self.has_body(key, content)):
                    memory[key] = at, content
        self.check(known, process, visitor, keys)

    def has_body(self, key, content):
        """Return whether the server must have a body."""
        return (key, content) not in self.doubtful and self.now < self.bodies_until.get((key, content), 0)

    @rule(seconds=st.sampled_from([0.5, 30, 59.5, 60, 540, 599.5, 600, 600.5, 1200, -0.5, -5, -5.5, -600]))
    def move_clock(self, seconds):
        """Let time pass, or set back a clock that was ahead: then bodies may expire too early."""
        server.now += seconds
        if seconds < 0:
            self.doubtful |= self.bodies_until.keys()

    @rule(process=processes)
    def restart(self, process):
        """Lose the memory of a process."""
        self.processes[process] = self.build_process()
        self.memory[process] = {visitor: {} for visitor in VISITORS}

    @rule(visitor=visitors, value=st.none() | garbage)
    def spoil_visitor(self, visitor, value):
        """Lose a visitor in the server, or overwrite it."""
        name = caches["default"].make_key(build_key("visitor", visitor))
        server.entries.pop(name, None)
        if value is not None:
            server.put(name, GARBAGE[value])
        self.stored[visitor] = {}

    @rule(key=st.sampled_from(KEYS), content=st.integers(0, 2), value=st.sampled_from(["gone", "forged"]) | garbage)
    def spoil_body(self, key, content, value):
        """Lose a body in the server, or overwrite it with another body or a value that isn't ours."""
        body = cache._encode(cache._list_content(key, build_answer(key, content)))
        name = next((name for name, (_, text) in server.entries.items() if text == json.dumps(body)), None)
        if name is not None:
            del server.entries[name]
            if value == "forged":
                server.put(name, body.replace("Title", "Other"))
            elif value != "gone":
                server.put(name, GARBAGE[value])
        self.doubtful.add((key, content))

    @invariant()
    def memory_holds_what_visitors_need(self):
        """No answer outlives the visitors who have it, and the bytes add up."""
        for memory in (process.memory for process in getattr(self, "processes", ())):
            records = [*memory._new.values(), *memory._returning.values()]
            bundles = {bundle.bodies: bundle for record in records for bundle in record[1::2]}
            bodies = {body.reference: body for bundle in bundles.values() for body in bundle.bodies}
            assert (memory._bundles, memory._bodies) == (bundles, bodies)
            weight = sum(map(local_cache._weigh_record, records))
            assert memory._bytes == weight + sum(part.size for part in (*bundles.values(), *bodies.values()))


def get_content(answer):
    """Return the number of an answer from the cache, which must be complete."""
    if answer is None:
        return 0
    number = answer["Title"]
    expected = build_answer(answer.experience_key, number)
    assert (answer.payload, answer.experience_context) == (expected.payload, expected.experience_context)
    assert answer.source is DataSource.CACHE
    return number


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(stateful_step_count=40, deadline=None)
