"""Both levels of the cache, in two processes, against a simple model on a virtual clock."""

import json

from django.core.cache import caches
from django.test import override_settings
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from django_moe_personalize.conf import get_settings
from django_moe_personalize.fetching import cache
from django_moe_personalize.fetching.cache import ExperienceCache
from django_moe_personalize.fetching.local_cache import LocalCache
from django_moe_personalize.moengage.types import DataSource, Experience
from tests.virtual_cache import GARBAGE, VIRTUAL, server

TTL, HARD, SKEW = 60_000, 600_000, 5_000
VISITORS = ("ann", "ben")
KEYS = ("hero", "promo")

processes = st.sampled_from([0, 1])
visitors = st.sampled_from(VISITORS)
keys_asked = st.lists(st.sampled_from(KEYS), min_size=1, unique=True)
contents = st.dictionaries(st.sampled_from(KEYS), st.integers(0, 2), min_size=1)
# By number: some of it is too long to be printed.
garbage = st.integers(0, len(GARBAGE) - 1)


def build(key, content):
    """Return the answer number ``content``; 0 is the absent one."""
    return Experience(key, {"Title": content, "list": [content]}, {"cid": key}) if content else None


class CacheMachine(RuleBasedStateMachine):
    """Two processes above one cache server, and what each of the three must hold."""

    @initialize()
    def start(self):
        """Begin with nothing known."""
        self.site = override_settings(CACHES=VIRTUAL)
        self.site.enable()
        server.__init__()
        self.ours = cache.local_cache
        self.processes = [LocalCache(), LocalCache()]
        # visitor → key → (when, which content), for each process and for the server.
        self.memory = [{visitor: {} for visitor in VISITORS} for _ in self.processes]
        self.stored = {visitor: {} for visitor in VISITORS}
        self.expires = dict.fromkeys(VISITORS, 0)
        # What a process was told or asked for itself; of the rest it may know no more than a reference.
        self.read = [set(), set()]
        self.spoiled = set()

    def teardown(self):
        """Leave nothing behind."""
        if hasattr(self, "site"):
            cache.local_cache = self.ours
            self.site.disable()

    @property
    def now(self):
        """Milliseconds."""
        return int(server.now * 1000)

    def open(self, process, visitor):
        """Return the cache under test."""
        cache.local_cache = self.processes[process]
        return ExperienceCache(visitor, get_settings(), clock=server.time)

    def keep(self, answers):
        """Return those of ``answers`` that are of any use."""
        return {k: answer for k, answer in answers.items() if self.now - HARD <= answer[0] <= self.now + SKEW}

    def check(self, found, process, visitor, keys):
        """Compare what came with what must come: right, whole, fresh if it is young, and missing for a reason."""
        known = {k: answer for k, answer in self.keep(self.memory[process][visitor]).items() if k in keys}
        assert found.keys() <= known.keys()
        for key, (at, content) in known.items():
            if key not in found:
                assert (visitor, key) not in self.read[process] or (key, content) in self.spoiled
                continue
            assert found[key].fresh == (self.now - at < TTL)
            experience, expected = found[key].experience, build(key, content)
            assert (experience is None) == (expected is None)
            if expected is not None:
                assert (experience.experience_key, experience.source) == (key, DataSource.CACHE)
                assert experience.payload == expected.payload
                assert experience.experience_context == expected.experience_context

    @rule(process=processes, visitor=visitors, answers=contents)
    def set(self, process, visitor, answers):
        """Store answers: both levels have them, beside what the process knew."""
        self.open(process, visitor).set({key: build(key, content) for key, content in answers.items()})
        known = self.keep(self.memory[process][visitor])
        known |= {key: (self.now, content) for key, content in answers.items()}
        self.memory[process][visitor] = known
        self.stored[visitor], self.expires[visitor] = dict(known), self.now + HARD
        self.read[process] |= {(visitor, key) for key in answers}

    @rule(process=processes, visitor=visitors, keys=keys_asked)
    def get(self, process, visitor, keys):
        """Ask both levels: of each key the newest answer comes, and at most two round trips are made."""
        before = len(server.calls)
        found = self.open(process, visitor).get(keys)
        calls = len(server.calls) - before
        assert calls <= 2
        if calls:
            known = self.keep(self.memory[process][visitor])
            stored = self.keep(self.stored[visitor]) if self.now < self.expires[visitor] else {}
            for key, answer in stored.items():
                if key not in known or answer[0] >= known[key][0]:
                    if known.get(key) != answer:
                        self.read[process].discard((visitor, key))
                    known[key] = answer
                    if key in keys:
                        self.read[process].add((visitor, key))
            self.memory[process][visitor] = known
        else:
            assert found.keys() == set(keys)
            assert all(cached.fresh for cached in found.values())
        self.check(found, process, visitor, keys)

    @rule(process=processes, visitor=visitors, keys=keys_asked)
    def get_local(self, process, visitor, keys):
        """Ask the process alone: the server hears nothing."""
        before = len(server.calls)
        found = self.open(process, visitor).get_local(keys)
        assert len(server.calls) == before
        self.check(found, process, visitor, keys)

    @rule(seconds=st.sampled_from([0.5, 1, 30, 59.5, 60, 300, 599.5, 600, 600.5, 1200]))
    def wait(self, seconds):
        """Let time pass."""
        server.now += seconds

    @rule(seconds=st.sampled_from([0.5, 5, 5.5, 100, 1000]))
    def set_clock_back(self, seconds):
        """Correct a clock that was ahead."""
        server.now -= seconds

    @rule(process=processes)
    def fork(self, process):
        """Lose what a process has in memory."""
        self.processes[process].after_fork()
        self.memory[process] = {visitor: {} for visitor in VISITORS}
        self.read[process].clear()

    @rule(visitor=visitors, value=garbage, evict=st.booleans())
    def spoil_visitor(self, visitor, value, evict):
        """Lose a visitor in the server, or find something else in the place."""
        name = caches["default"].make_key(cache.build_key("visitor", visitor))
        server.entries.pop(name, None)
        if not evict:
            server.put(name, GARBAGE[value])
        self.stored[visitor] = {}

    @rule(key=st.sampled_from(KEYS), content=st.integers(1, 2), value=garbage, fate=st.sampled_from("abc"))
    def spoil_body(self, key, content, value, fate):
        """Lose a body in the server, or find another body or something else in the place."""
        experience = build(key, content)
        body = cache._encode([key, experience.payload, experience.experience_context])
        name = next((name for name, (_, text) in server.entries.items() if text == json.dumps(body)), None)
        if name is not None:
            self.spoiled.add((key, content))
            del server.entries[name]
            if fate == "a":
                server.put(name, GARBAGE[value])
            elif fate == "b":
                server.put(name, body.replace("Title", "Other"))

    @invariant()
    def holds_what_visitors_need(self):
        """No body outlives the visitors who have it, and the sum of the weights comes out."""
        for process in getattr(self, "processes", ()):
            records = [*process._first.values(), *process._protected.values()]
            bodies = {id(item): item for record in records for item in record if not isinstance(item, int)}
            assert {id(body) for body in process._bodies.values()} == bodies.keys()
            weight = sum(360 + 16 * len(record) for record in records) + sum(body.size for body in bodies.values())
            assert process.counts.bytes == weight


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
