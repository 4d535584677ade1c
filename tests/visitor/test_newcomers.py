"""The share of new anonymous ids that never come back."""

import json

import pytest

from django_moe_personalize.visitor.newcomers import SAMPLE_SIZE, Newcomers, count_lost


@pytest.mark.parametrize("number", [0, 50, SAMPLE_SIZE, 20_000])
def test_share_of_several_processes(number):
    """The share is right within a few percent, whichever process an id comes back to. The samples are bounded."""
    processes = [Newcomers() for _ in range(4)]
    for index in range(number):
        processes[index % 4].add_given(f"anon-{index}")
        if index % 5 < 2:
            processes[index // 5 % 4].add_returned(f"anon-{index}")
        # Visitors of former processes return too.
        processes[index % 3].add_returned(f"anon-old-{index}")
    samples = [process.describe() for process in processes]
    assert all(len(ids) <= SAMPLE_SIZE for sample in samples for ids in sample.values())
    assert "anon" not in json.dumps(samples)
    count, lost = count_lost(samples)
    assert count == number if number < SAMPLE_SIZE else count > 200
    assert lost == pytest.approx(0.6 * count, abs=0.1 * count)
