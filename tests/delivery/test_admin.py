"""The outbox in the admin: rows without customers, the counters, and parked events sent again."""

import re
import sqlite3
from urllib.parse import urlencode

import pytest
from django.conf import settings as django_settings
from django.contrib import admin
from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connection
from django.test import override_settings
from django.utils import timezone, translation

from django_moe_personalize.delivery.base import get_delivery
from django_moe_personalize.delivery.outbox import State
from django_moe_personalize.models import OutboxEvent
from django_moe_personalize.moengage.data_api import build_conversion
from tests.delivery.events import make_event, make_events

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.admin_urls")]

LIST = "/admin/moe_personalize/outboxevent/"
COPY_ROWS = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %s)
INSERT INTO moe_personalize_outboxevent
    (workspace, event_uuid, customer_hash, body, state, attempts, due_at, reason, created_at)
SELECT workspace, printf('%%032x', i), customer_hash, body, state, attempts, due_at, reason, created_at
FROM n, moe_personalize_outboxevent
"""
APPS = django_settings.INSTALLED_APPS


@pytest.fixture(scope="module", autouse=True)
def admin_tables(django_db_setup, django_db_blocker):
    """Make the table of the admin's history. The other tests have no admin."""
    with django_db_blocker.unblock(), override_settings(INSTALLED_APPS=[*APPS, "django.contrib.admin"]):
        call_command("migrate", "admin", verbosity=0)


@pytest.fixture(autouse=True)
def site(settings, configure):
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
    table = re.search(r'<table class="moe-counters">.*?</table>', response.text, re.DOTALL)[0]
    cells = [re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", table) for tag in ("th", "td")]
    return dict(zip(*cells, strict=True))


def read_history():
    from django.contrib.admin.models import LogEntry

    entries = LogEntry.objects.filter(content_type__model="outboxevent", action_flag=2)
    return list(entries.values_list("user__username", "change_message"))


def park(vendor, *events):
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
    none = dict.fromkeys(["accepted", "delivered", "of these parked", "pending"], "0")
    assert read_counters(client.get(LIST)) == none
    get_delivery().record(make_events(2))
    get_delivery().flush()
    park(vendor, make_event())
    get_delivery().record(make_events(1))
    counters = {"accepted": "4", "delivered": "2", "dropped: refused": "1", "of these parked": "1", "pending": "1"}
    assert read_counters(client.get(LIST)) == {**counters, "oldest pending": "0\xa0minutes"}


def test_nothing_can_be_added_changed_or_deleted(staff):
    """Not even a user with every permission can edit the outbox."""
    get_delivery().record(make_events(1))
    client = staff("add_outboxevent", "change_outboxevent", "delete_outboxevent")
    row = OutboxEvent.objects.get()
    assert client.get(f"{LIST}add/").status_code == 403
    assert client.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert client.post(f"{LIST}{row.pk}/change/", {"state": "refused"}).status_code == 403
    client.post(LIST, {"action": "delete_selected", "_selected_action": [row.pk], "select_across": 1, "post": "yes"})
    assert OutboxEvent.objects.get().state == State.PENDING


def test_parked_events_are_sent_again(staff, vendor):
    """A user who may change events selects events. The selected pending events don't change."""
    first, second = make_events(2)
    park(vendor, first, second)
    get_delivery().record(make_events(1))
    client = staff("change_outboxevent")
    chosen = OutboxEvent.objects.exclude(event_uuid=second.event_uuid).values_list("pk", flat=True)
    for said in ("1 parked event is due again.", "0 parked events are due again."):
        response = client.post(LIST, {"action": "send_again", "_selected_action": list(chosen)}, follow=True)
        assert said in response.text
    assert read_history() == [("staff", "1 parked event is due again.")]
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


def test_actions_of_the_whole_admin_are_not_offered(staff):
    """An action that a site adds for all models, such as an export, would give the customers away."""
    get_delivery().record(make_events(1))
    exported = []
    admin.site.add_action(lambda model_admin, request, queryset: exported.extend(queryset), "export")
    try:
        client = staff("change_outboxevent")
        assert "export" not in client.get(LIST).text
        client.post(LIST, {"action": "export", "_selected_action": [OutboxEvent.objects.get().pk]})
    finally:
        admin.site.disable_action("export")
    assert exported == []


@pytest.mark.parametrize(
    "query",
    [
        *("body__startswith=%7B%22customer_id%22%3A%224", "body__contains=4711", "body__regex=.", "body=4711"),
        *("customer_hash=aa", "customer_hash__exact=aa", "customer_hash__startswith=a", "customer_hash__in=aa"),
        *("event_uuid__startswith=a", "is_pending__exact=1", "created_at__year=2026", "due_at__gte=2026-01-01"),
        *("lease__isnull=True", "attempts__gt=0", "reason__contains=4711", "id__in=1", "pk=1", "unknown=1"),
        *("state__startswith=r", "state__in=refused", "state__isnull=True", "state__exact=4711"),
        *("e=1&body__contains=4", "_popup=1&body__contains=4", "_facets=1&body__contains=4", "o=1&body__contains=4"),
        *("_to_field=customer_hash", "_to_field=body", "_popup=1&_to_field=event_uuid"),
    ],
)
@pytest.mark.parametrize("method", ["get", "post"])
def test_no_lookup_beyond_the_state(staff, query, method):
    """A user can't find out by filters which customer an event belongs to. Other fields than the state are refused."""
    get_delivery().record([make_event("4711")])
    assert getattr(staff("change_outboxevent"), method)(f"{LIST}?{query}").status_code == 400


def test_the_allowed_ways_to_find_an_event(staff, vendor):
    """Users filter by state, sort by any column, and search for a whole UUID. No other word finds an event."""
    event, other = make_event("4711"), make_event("4712")
    park(vendor, event)
    get_delivery().record([other])
    client = staff()

    def find(**query):
        page = client.get(LIST, query).text
        return [each for each in (event, other) if each.event_uuid in page]

    assert find(state__exact="refused") == [event]
    assert find(q=f" {event.event_uuid.upper()} ") == [event]
    assert find(q="") == find(o="7.-6.99.x", _facets=1) == [event, other]
    row = OutboxEvent.objects.get(event_uuid=event.event_uuid)
    for word in ("4711", "Home hero", event.event_uuid[:-1], row.customer_hash, row.reason, str(row.pk)):
        assert find(q=word) == []


@pytest.mark.parametrize(("count", "is_across"), [(260_000, True), (2_000, False)], ids=["select all", "each row"])
def test_any_number_of_events_is_sent_again(staff, settings, count, is_across):
    """Selected events are due again after one request, with one entry in the history that names their number."""
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = None
    connection.ensure_connection()
    # Debian's SQLite allows 250,000 parameters in a query. To save time, the test sets the limit of other builds.
    limit = connection.connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    get_delivery().record(make_events(1))
    OutboxEvent.objects.update(state=State.REFUSED, due_at=timezone.now())
    with connection.cursor() as cursor:
        cursor.execute(COPY_ROWS, [count - 1])
    keys = OutboxEvent.objects.values_list("pk", flat=True)
    post = [("action", "send_again"), ("select_across", int(is_across))]
    post += [("_selected_action", key) for key in (keys[:1] if is_across else keys)]
    client = staff("change_outboxevent")
    try:
        response = client.post(f"{LIST}?state__exact=refused", urlencode(post), "application/x-www-form-urlencoded")
    finally:
        connection.connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, limit)
    assert response.status_code == 302
    assert not OutboxEvent.objects.exclude(state=State.PENDING).exists()
    assert read_history() == [("staff", f"{count} parked events are due again.")]


def test_the_page_speaks_the_users_language(staff, vendor):
    """Columns, states, counters, action, message and help are translated when the page is shown, not at import."""
    park(vendor, make_event())
    client = staff("change_outboxevent")
    send = {"action": "send_again", "_selected_action": [OutboxEvent.objects.get().pk]}
    texts = {
        "MoEngage Personalize": "MoEngage Personalize",
        "Events in the outbox": "Ereignisse im Postausgang",
        "refused by MoEngage": "von MoEngage abgelehnt",
        "Counters of all processes": "Zähler aller Prozesse",
        "dropped: refused": "verworfen: abgelehnt",
        ">accepted<": ">angenommen<",
        "Send parked events again": "Zurückgestellte Ereignisse erneut senden",
        "Enter the whole UUID of an event.": "Geben Sie die ganze UUID eines Ereignisses",
        ">Experience<": ">Experience<",
        ">shown<": ">gezeigt<",
        "Reason": "Grund",
    }
    for language, shown in (("en", texts.keys()), ("de", texts.values())):
        with translation.override(language):
            page = client.get(LIST).text
        assert [text for text in shown if text not in page] == []
    with translation.override("de"):
        assert "1 zurückgestelltes Ereignis" in client.post(LIST, send, follow=True).text


def test_a_conversion_has_its_name(staff):
    """The list shows the name of a conversion as the action, and no attribute."""
    get_delivery().record([build_conversion("user-1", "Order placed", {"total": "private"})])
    page = staff().get(LIST).text
    assert "Order placed" in page
    assert "private" not in page
