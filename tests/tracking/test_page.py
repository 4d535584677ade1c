"""How events are built and handed to the delivery."""

from unittest import mock

from asgiref.sync import async_to_sync

from django_moe_personalize import tracking


def test_no_events_are_not_handed_over():
    """A page without events doesn't touch the delivery."""
    with mock.patch.object(tracking.page, "get_delivery") as get_delivery:
        tracking.record([])
        async_to_sync(tracking.arecord)([])
    assert not get_delivery.called
