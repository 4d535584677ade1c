"""The outbox in the admin: rows without customers, the counters, and parked events sent again."""

import re

import pytest
from django.contrib.auth.models import Permission, User

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.outbox import State
from django_moe_personalize.models import OutboxEvent
from tests.delivery.events import make_event, make_events

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.admin_urls")]

LIST = "/admin/moe_personalize/outboxevent/"


@pytest.fixture(autouse=True)
def site(settings, configure):
    """Use the admin and an outbox."""
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django.contrib.admin", "django.contrib.messages"]
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "django.contrib.messages.middleware.MessageMiddleware"]
    processors = ["django.contrib.auth.context_processors.auth", "django.contrib.messages.context_processors.messages"]
    processors.append("django.template.context_processors.request")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "OPTIONS": {"context_processors": processors}}]
    configure("database.DatabaseDelivery")


@pytest.fixture
def staff(client):
    """Give a function that signs in a user who may see the outbox, with further permissions."""

    def sign_in(*codenames):
        user = User.objects.create(username="staff", is_staff=True)
        user.user_permissions.set(Permission.objects.filter(codename__in=["view_outboxevent", *codenames]))
        client.force_login(user)
        return client

    return sign_in


def read_counters(response):
    """Return the counters on the page as a dict."""
    table = re.search(r'<table class="moe-counters">.*?</table>', response.text, re.DOTALL)[0]
    cells = [re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", table) for tag in ("th", "td")]
    return dict(zip(*cells, strict=True))


def park(vendor, *events):
    """Let MoEngage refuse events."""
    vendor.poison = {event.event_uuid for event in events}
    get_delivery().record(events)
    get_delivery().flush()
    vendor.poison = set()


def test_list_shows_events_and_no_customer(staff, vendor):
    """List and detail show state, action, experience, age, attempts and reason, but not the customer."""
    vendor.description = "customer-4711 is unknown"
    park(vendor, make_event("customer-4711"))
    client = staff("change_outboxevent", "delete_outboxevent", "add_outboxevent")
    response = client.get(LIST)
    for shown in ("refused by MoEngage", "shown", "Home hero", "0\xa0minutes", "answered 400"):
        assert shown in response.text
    detail = client.get(f"{LIST}{OutboxEvent.objects.get().pk}/change/")
    assert "answered 400" in detail.text
    for page in (response, detail):
        assert "4711" not in page.text
        assert OutboxEvent.objects.get().customer_hash not in page.text


def test_counters_of_all_processes_are_above_the_list(staff, vendor):
    """Accepted, delivered, dropped by reason, pending, and the age of the oldest pending event."""
    client = staff()
    assert read_counters(client.get(LIST)) == dict.fromkeys(
        ("accepted", "delivered", "of these parked", "pending"), "0"
    )
    get_delivery().record(make_events(2))
    get_delivery().flush()
    park(vendor, make_event())
    get_delivery().record(make_events(1))
    assert read_counters(client.get(LIST)) == {
        "accepted": "4",
        "delivered": "2",
        "dropped: refused": "1",
        "of these parked": "1",
        "pending": "1",
        "oldest pending": "0\xa0minutes",
    }


def test_nothing_can_be_added_changed_or_deleted(staff):
    """Not even a user with every permission can edit the outbox."""
    get_delivery().record(make_events(1))
    client = staff("add_outboxevent", "change_outboxevent", "delete_outboxevent")
    row = OutboxEvent.objects.get()
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.post(f"{LIST}{row.pk}/change/", {"state": "refused"}).status_code == 403
    assert OutboxEvent.objects.get().state == State.PENDING


def test_parked_events_are_sent_again(staff, vendor):
    """A user who may change events selects events. The selected pending events don't change."""
    first, second = make_events(2)
    park(vendor, first, second)
    get_delivery().record(make_events(1))
    client = staff("change_outboxevent")
    chosen = OutboxEvent.objects.exclude(event_uuid=second.event_uuid).values_list("pk", flat=True)
    for said in ("1 parked events are due again.", "0 parked events are due again."):
        response = client.post(LIST, {"action": "send_again", "_selected_action": list(chosen)}, follow=True)
        assert said in response.text
    assert OutboxEvent.objects.get(event_uuid=second.event_uuid).state == State.REFUSED
    get_delivery().flush()
    assert vendor.taken[first.event_uuid] == 1


def test_a_row_without_an_event_is_shown(staff):
    """A user must see rows that are parked because they can't be read."""
    bodies = ["[", "{}", '{"actions":[{"attributes":[]}]}']
    get_delivery().record(make_events(len(bodies)))
    for row, body in zip(OutboxEvent.objects.all(), bodies, strict=True):
        OutboxEvent.objects.filter(pk=row.pk).update(body=body)
    assert staff().get(LIST).text.count("field-experience") == len(bodies)


@pytest.mark.parametrize(
    ("name", "permission", "hidden"),
    [
        ("database.DatabaseDelivery", "view_outboxevent", "send_again"),
        ("dummy.DummyDelivery", "change_outboxevent", "moe-counters"),
    ],
    ids=["no permission", "no outbox"],
)
def test_rows_that_cannot_be_sent_again_are_shown(staff, vendor, configure, name, permission, hidden):
    """A user needs the permission. A site that changed its delivery sees the remaining rows, without counters."""
    park(vendor, make_event())
    configure(name)
    client = staff(permission)
    response = client.get(LIST)
    assert "refused by MoEngage" in response.text
    assert hidden not in response.text
    row = OutboxEvent.objects.get()
    client.post(LIST, {"action": "send_again", "_selected_action": [row.pk]})
    assert OutboxEvent.objects.get().state == State.REFUSED
