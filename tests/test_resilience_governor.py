"""The governor on virtual clocks, between governors that share a count, threads, forks and processes."""

import subprocess
import sys
import threading

import pytest

from django_moe_personalize.governor import SLOT_SECONDS, SLOTS, Governor
from tests.test_resilience import Clock, in_child, together


class Shared:
    """A count that governors share, as a cache would be; ``away`` makes it fail."""

    def __init__(self):
        self.numbers = {}
        self.calls = 0
        self.away = False
        self.lock = threading.Lock()

    def add(self, key, amount, timeout):
        """See Governor."""
        with self.lock:
            self.calls += 1
            if self.away:
                return None
            assert timeout >= 2 * SLOT_SECONDS
            assert amount > 0
            self.numbers[key] = self.numbers.get(key, 0) + amount
            return self.numbers[key]


@pytest.fixture
def clock():
    """A clock that stands still until it is moved."""
    return Clock()


@pytest.fixture
def shared():
    """A count to share."""
    return Shared()


@pytest.fixture
def build(clock, shared):
    """Build governors on the clock that share the count."""

    def build(limit=130, add=shared.add):
        return Governor(limit, add=add, clock=clock, wall_clock=clock)

    return build


def drain(governor):
    """Take until refused and return how often that went."""
    taken = 0
    while governor.take():
        taken += 1
    return taken


def test_lets_the_limit_through_and_no_more(build, clock):
    """The whole limit may go at once; then nothing for a minute."""
    governor = build(add=None)
    assert drain(governor) == 130
    assert governor.used == 130
    clock.now += 60
    assert not governor.take()
    clock.now += 1
    assert governor.take()
    assert governor.used == 1


def test_takes_all_or_none(build):
    """What needs three calls is not let out with two, and a refusal costs nothing."""
    governor = build(add=None)
    assert governor.take(128)
    assert not governor.take(3)
    assert governor.take(2)
    assert not governor.take()


def test_refuses_a_limit_that_cannot_be_shared_out():
    """A limit below one a slot is a mistake, said when it is made."""
    with pytest.raises(ValueError, match="limit_per_minute must be at least 13, not 12"):
        Governor(12)
    assert Governor(13).take()


def test_governors_share_what_there_is(build, clock, shared):
    """Together they let a thirteenth of the limit through in a slot, whoever asks, and the next slot has its own."""
    governors = [build() for _ in range(3)]
    taken = [sum(governor.take() for _ in range(4)) for governor in governors]
    assert taken == [4, 4, 2]
    clock.now += SLOT_SECONDS
    assert sum(map(drain, governors)) == 10
    assert sum(governor.used for governor in governors) == 20


def test_shared_limit_holds_in_any_minute(build, clock):
    """Governors that take whatever they can get never pass the limit in 60 seconds, and use most of it."""
    governors = [build() for _ in range(3)]
    grants = []
    for _ in range(400):
        clock.now += 0.7
        grants.extend([clock.now] * sum(map(drain, governors)))
    for start in grants:
        assert 110 <= sum(start <= moment <= start + 60 for moment in grants) <= 130 or start > grants[-1] - 60


def test_shared_count_is_asked_seldom(build, clock, shared):
    """A process that needs much borrows much at a time: a round trip is not paid by every request."""
    governor = build(10_000)
    for _ in range(4):
        clock.now += SLOT_SECONDS
        shared.calls = 0
        assert all(governor.take() for _ in range(400))
    assert shared.calls <= 12


def test_borrows_no_more_than_it_may_need(build, clock, shared):
    """A quiet process holds back little from busy ones."""
    quiet, busy = [build(10_000) for _ in range(20)], build(10_000)
    assert all(governor.take() for governor in quiet)
    assert drain(busy) == 10_000 // SLOTS - 20


def test_shared_count_is_not_asked_when_all_is_spent(build, shared):
    """Once a slot has nothing left nobody asks again in it, nor for what the process itself may not send."""
    governor = build()
    drain(governor)
    calls = shared.calls
    assert not governor.take()
    assert shared.calls == calls


def test_own_limit_holds_beside_the_shared_count(build, clock, shared):
    """A process that sent a minute's worth while the count was away is not let out by its return."""
    governor = build()
    shared.away = True
    drain(governor)
    shared.away = False
    clock.now += SLOT_SECONDS
    calls = shared.calls
    assert not governor.take()
    assert shared.calls == calls


def test_part_of_a_lease_stays_for_smaller_needs(build):
    """What is too little for three goes to those who need one."""
    governor, other = build(), build()
    assert [other.take() for _ in range(8)] == [True] * 8
    assert not governor.take(3)
    assert governor.take(2)
    assert not governor.take()


def test_counts_by_itself_while_the_shared_count_is_away(build, clock, shared):
    """A cache that fails costs one attempt a slot, and the limit of the process holds."""
    governor = build()
    shared.away = True
    assert drain(governor) == 130
    assert shared.calls == 1
    clock.now += 61
    assert governor.take()
    assert governor.take()
    assert shared.calls == 2
    shared.away = False
    clock.now += SLOT_SECONDS
    assert drain(governor) == 10


def test_a_wall_clock_that_jumps_breaks_nothing(build, clock, shared):
    """A slot seen again has what is left of it, whichever way the clock was set."""
    governor = build()
    assert drain(governor) == 10
    clock.now += SLOT_SECONDS
    assert governor.take()
    clock.now -= SLOT_SECONDS
    assert not governor.take()
    clock.now += 3600
    assert drain(governor) == 10


def test_slow_count_holds_up_its_caller_alone(clock):
    """While one waits for the shared count others are answered from what the process has."""
    asked, answer = threading.Event(), threading.Event()

    def add(key, amount, timeout):
        if threading.current_thread() is not threading.main_thread():
            asked.set()
            answer.wait(10)
        return amount

    governor = Governor(10_000, add=add, clock=clock, wall_clock=clock)
    slow = threading.Thread(target=governor.take)
    slow.start()
    assert asked.wait(10)
    assert governor.take()
    answer.set()
    slow.join(10)
    assert governor.used == 2


def test_answers_that_overtake_each_other_bring_nothing_back(clock):
    """When an older answer of the shared count comes last, what is spent stays spent: nobody asks again."""
    asked, answer = threading.Event(), threading.Event()
    totals = []

    def add(key, amount, timeout):
        if threading.current_thread() is threading.main_thread():
            totals.append(10)
            return 10
        totals.append(9)
        asked.set()
        answer.wait(10)
        return 9

    governor = Governor(130, add=add, clock=clock, wall_clock=clock)
    slow = threading.Thread(target=governor.take)
    slow.start()
    assert asked.wait(10)
    assert governor.take()
    answer.set()
    slow.join(10)
    assert not governor.take()
    assert (governor.used, totals) == (2, [9, 10])


def test_what_others_overdrew_takes_nothing_from_a_lease(build, shared):
    """However far the shared count is past the limit, what was granted stays granted."""
    governor = build(13_000)
    for _ in range(100):
        governor.take()
    left = governor._lease.left
    assert left > 0
    (key,) = shared.numbers
    shared.numbers[key] = 5000
    assert not governor.take(left + 1)
    assert governor.take(left)


def test_threads_share_a_governor(build):
    """Threads of several processes' governors together get exactly what a slot has."""
    governors = [build(13_000), build(13_000)]
    taken = together(8, lambda index: drain(governors[index % 2]))
    assert sum(taken) == 1000


def test_forked_child_has_nothing_of_its_parents_lease(build, shared):
    """A child counts from nothing and borrows for itself, though the lock was held at the fork."""
    governor = build(10_000)
    for _ in range(100):
        governor.take()
    assert governor._lease.left > 0
    borrowed = sum(shared.numbers.values())
    with governor._lock:
        assert in_child(lambda: governor.used == 0 and governor.take() and sum(shared.numbers.values()) == borrowed + 1)
    assert governor.used == 100


PROCESS = """
import fcntl, sys
from django_moe_personalize.governor import Governor

def add(key, amount, timeout):
    with open(sys.argv[1], "r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        total = int(file.read() or "0") + amount
        file.seek(0)
        file.write(str(total))
    return total

governor = Governor(10_000, add=add, wall_clock=lambda: 1000.0)
print("ready", flush=True)
sys.stdin.readline()
taken = 0
while governor.take():
    taken += 1
print(taken)
"""


def test_processes_share_the_limit(tmp_path):
    """Real processes that take as fast as they can get together exactly what a slot has."""
    count = tmp_path / "count"
    count.touch()
    command = [sys.executable, "-c", PROCESS, str(count)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    taken = [int(process.communicate(timeout=30)[0]) for process in processes]
    assert sum(taken) == 10_000 // SLOTS
