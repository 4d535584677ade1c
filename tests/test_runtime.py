"""The runtime: each part is built once, and dropped with its process or its settings."""

import logging
import os
import signal
import threading

import pytest
from django.test import override_settings

from django_moe_personalize import runtime
from django_moe_personalize.conf import ConfigurationError, get_settings
from django_moe_personalize.runtime import get_runtime, log_once, part, reset_runtimes
from tests.processes import together

built, closed = [], []


@part
def get_first(runtime):
    """Build the first part."""
    return Thing("first")


@part
def get_second(runtime):
    """Build a part from another part."""
    return Thing(f"second after {get_first(runtime).name}")


@part
def get_plain(runtime):
    """Build a part that has nothing to close."""
    return {}


class Thing:
    def __init__(self, name):
        self.name = name
        self.fails = False
        built.append(name)

    def close(self):
        """Record the call, and fail on demand."""
        closed.append(self.name)
        if self.fails:
            raise OSError(self.name)


@pytest.fixture(autouse=True)
def forget_things():
    """Start with empty lists and with no runtime."""
    reset_runtimes()
    built.clear()
    closed.clear()


def test_part_is_built_on_first_use():
    """A part keeps the name and docstring of its function. find() doesn't build it."""
    assert get_second.find() is None
    assert get_second().name == "second after first"
    assert get_second() is get_second.find() is get_second(get_runtime())
    assert built == ["first", "second after first"]
    assert (get_first.__name__, get_first.__doc__) == ("get_first", "Build the first part.")


def test_threads_build_a_part_once():
    """If several threads need a part at the same time, one thread builds the part and the other threads wait."""
    started = threading.Event()

    @part
    def get_slow(runtime):
        started.wait(10)
        return Thing("slow")

    found = together(8, lambda index: get_slow() if index else started.set())
    assert set(found) == {get_slow(), None}
    assert built == ["slow"]


def test_second_thread_takes_the_part_of_the_first():
    """A thread that waited for the lock finds the part that another thread built meanwhile."""
    current, found = get_runtime(), []
    waiter = threading.Thread(target=lambda: found.append(get_first()))
    asked = threading.Event()

    class Lock:
        """Signal that a thread is about to wait for the real lock."""

        def __enter__(self):
            asked.set()
            lock.acquire()

        def __exit__(self, *exception):
            lock.release()

    lock, current._lock = current._lock, Lock()
    with lock:
        waiter.start()
        asked.wait(10)
        current._lock = lock
        mine = get_first()
    waiter.join()
    assert found == [mine]
    assert built == ["first"]


def test_part_that_fails_is_built_again():
    """An error while building leaves no part behind."""
    outcomes = [ValueError("not yet"), "built"]

    @part
    def get_fragile(runtime):
        if isinstance(outcome := outcomes.pop(0), Exception):
            raise outcome
        return outcome

    with pytest.raises(ValueError, match="not yet"):
        get_fragile()
    assert get_fragile() == "built"


def test_override_wins_in_every_thread_until_it_ends():
    """The innermost override wins, even if it occurs twice. The runtime closes built parts, but never an override."""
    mine, first, second = get_second(), Thing("override"), object()
    with get_first.override(first) as given:
        assert given is first
        assert closed == ["second after first", "first"]
        assert get_second().name == "second after override"
        with get_first.override(second), get_first.override(first):
            assert get_first() is first
        with get_first.override(second):
            assert together(1, lambda index: get_first()) == [second]
            assert get_first.find() is second
        assert get_first() is first
    assert "override" not in closed
    assert get_second().name == "second after first"
    assert get_second() is not mine


def test_overrides_end_in_any_order():
    """Two threads may end overrides of one part in the order in which they began. An error ends an override too."""
    with pytest.raises(RuntimeError), get_first.override(object()):
        raise RuntimeError
    assert get_first().name == "first"
    one, two = get_first.override("one"), get_first.override("two")
    one.__enter__()
    two.__enter__()
    one.__exit__(None, None, None)
    assert get_first() == "two"
    two.__exit__(None, None, None)
    assert get_first().name == "first"


def test_reset_closes_newest_first():
    """Every part that can be closed is closed, even after an error, and the next use builds another."""
    second, first = get_second(), get_first()
    get_plain()
    second.fails = True
    with pytest.raises(OSError, match="second"):
        reset_runtimes()
    assert closed == ["second after first", "first"]
    assert get_first() is not first


@pytest.mark.parametrize(("setting", "value", "drops"), [("SECRET_KEY", "other", True), ("USE_TZ", False, False)])
def test_change_of_settings_drops_the_runtime(setting, value, drops):
    """A change of a setting drops the parts that are built from it, and so does the change back."""
    first, before = get_first(), get_settings()
    with override_settings(**{setting: value}):
        assert (get_first() is not first) is drops
        assert (get_settings() is not before) is drops
    assert closed == ["first", "first"] * drops


def test_workspace_of_the_settings():
    """The settings describe one workspace, and a part reads them from its runtime."""
    assert get_runtime("default").settings is get_settings()
    assert repr(get_runtime()) == "<Runtime default>"
    with pytest.raises(ConfigurationError, match=r"has no workspace 'other'\. Use 'default'\."):
        get_runtime("other")


def test_child_of_a_fork_starts_with_its_own_runtime():
    """The child builds its own parts, even if a thread of the parent held the locks, and closes only its own."""
    mine = get_first()
    # A finished thread that never released the locks is to the child like one that the fork left behind.
    holder = threading.Thread(target=lambda: (runtime._process.lock.acquire(), get_runtime()._lock.acquire()))
    process = runtime._process
    holder.start()
    holder.join()
    child = os.fork()
    if not child:
        # The alarm ends a child that waits for a lock. By default it does: pytest-timeout has a handler of its own.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)
        is_right = get_first() is not mine and get_first() is get_first()
        reset_runtimes()
        os._exit(0 if is_right and closed == ["first"] else 1)
    process.lock.release()
    get_runtime()._lock = threading.RLock()
    assert os.waitpid(child, 0)[1] == 0
    assert get_first() is mine
    assert closed == []


def test_message_is_logged_once_a_key(caplog):
    """A second message with the same key is not logged."""
    log_once("a", "%s failed", "first")
    log_once("a", "%s failed", "second")
    log_once(("b", 1), "other", level=logging.ERROR)
    assert [(record.name, record.levelname, record.getMessage()) for record in caplog.records] == [
        ("django_moe_personalize", "WARNING", "first failed"),
        ("django_moe_personalize", "ERROR", "other"),
    ]
    reset_runtimes()
    log_once("a", "%s failed", "third")
    assert len(caplog.records) == 3


def test_one_of_many_threads_logs(caplog):
    """Threads that fail at the same moment log one line."""
    barrier = threading.Barrier(8, timeout=10)

    class Key:
        """A key whose lookup waits for the lookups of the other threads."""

        def __hash__(self):
            barrier.wait()
            return 1

    key = Key()
    together(8, lambda index: log_once(key, "failed"))
    assert len(caplog.records) == 1


def test_memory_of_logged_keys_is_bounded(caplog):
    """The runtime forgets its keys before they take much memory."""
    for number in range(3 * runtime.MAX_LOGGED):
        log_once(number, "failed")
        assert len(get_runtime()._logged) <= runtime.MAX_LOGGED
    assert len(caplog.records) == 3 * runtime.MAX_LOGGED
