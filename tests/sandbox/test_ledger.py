"""The ledger: bounded entries, counts, and each UUID once."""

import threading
import uuid

from django_moe_personalize.sandbox.ledger import Counts, Ledger, LedgerEntry


def entry(number: int, kind: str = "SHOWN") -> LedgerEntry:
    """Return an entry with ``number`` as its UUID."""
    return LedgerEntry(
        event_uuid=str(uuid.UUID(int=number)),
        action=f"MOE_PERSONALIZATION_MESSAGE_{kind}",
        experience_key="k",
        customer_id="42",
        event_time=1,
        received=2.0,
        platform="web",
        attributes={"secret": 42},
    )


def test_the_oldest_entries_are_dropped_but_stay_counted() -> None:
    """The ledger remembers UUIDs for longer than entries."""
    ledger = Ledger(max_entries=2, max_uuids=4)
    assert ledger.record(entry(number) for number in range(3)) == 3

    assert [each.event_uuid[-1] for each in ledger.entries()] == ["1", "2"]
    assert ledger.counts() == {"k": Counts(3, 0)}
    assert ledger.record([entry(0)]) == 0
    ledger.record([entry(3), entry(4)])
    assert ledger.record([entry(0), entry(4)]) == 1


def test_clear_removes_everything() -> None:
    """After clear() even known UUIDs are new. The counts that a caller got earlier are a copy."""
    ledger = Ledger()
    ledger.record([entry(1), entry(2, "CLICKED")])
    ledger.counts()["k"].clicks = 99

    assert ledger.counts() == {"k": Counts(1, 1)}
    ledger.clear()
    assert (ledger.entries(), ledger.counts()) == ([], {})
    assert ledger.record([entry(1)]) == 1


def test_threads_that_record_the_same_events_count_each_once() -> None:
    """Eight threads record the same 300 events."""
    ledger = Ledger()
    threads = [threading.Thread(target=lambda: [ledger.record([entry(n)]) for n in range(300)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ledger.counts() == {"k": Counts(300, 0)}
    assert len(ledger.entries()) == 300


def test_the_repr_has_no_personal_data() -> None:
    """An entry in a log names neither the customer nor the attributes."""
    assert "42" not in repr(entry(1))
