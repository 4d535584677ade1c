"""What Wagtail and django CMS share: the field of an experience key, and the fetch before a page renders."""

import threading

import pytest
from django.contrib.messages.storage.fallback import FallbackStorage
from django.dispatch import Signal
from django.http import HttpResponse
from django.template import TemplateDoesNotExist
from django.template.loader import render_to_string
from django.test import Client
from django.urls import path

from django_moe_personalize.contrib import editing
from django_moe_personalize.contrib.editing import ExperienceKeyInput, list_templates, start_fetch
from django_moe_personalize.fetching.metadata import get_metadata_store
from django_moe_personalize.moengage.types import ExperienceMeta, ExperienceStatus
from django_moe_personalize.testing import override_experiences, override_personalize
from tests.rendering.conftest import shown  # noqa: F401 - a fixture

ROWS = [
    ("hero-banner", "Hero <1>", "active"),
    ("spring-sale", "Spring", "paused"),
    ("winter-sale", "Winter", "scheduled"),
]


@pytest.fixture
def metadata(monkeypatch):
    """Give a MoEngage whose metadata waits for ``release``, and the thread of each read."""
    with override_experiences({"hero": {}}) as seen:
        handle, seen.release, seen.threads = seen.engine.handle, threading.Event(), []

        def wait(request):
            seen.threads.append(threading.current_thread().name)
            return [seen.release.wait(60), handle(request)][1]

        monkeypatch.setattr(seen.engine, "handle", wait)
        yield seen
        seen.release.set()


def settle():
    while not get_metadata_store()._experiences:
        threading.Event().wait(0.01)


def test_field_never_waits(metadata):
    """While MoEngage doesn't answer, the field is a plain text field. Later it offers the experiences."""
    before = ExperienceKeyInput().render("key", "typed", {"id": "id_key"})
    assert 'value="typed" id="id_key" list="id_key-experiences"' in before
    assert before.endswith('<datalist id="id_key-experiences"></datalist>')
    metadata.release.set()
    settle()
    assert '<option value="hero">hero</option>' in ExperienceKeyInput().render("key", None)
    assert {*metadata.threads} == {"moe-personalize-background"}
    with override_personalize(ENABLED=False):
        assert "<option" not in ExperienceKeyInput().render("key", None)


def test_field_says_which_experiences_visitors_get():
    """The field has the name of each experience, and says if visitors don't get it yet."""
    store = get_metadata_store()
    store._experiences = [ExperienceMeta(key, name, ExperienceStatus(status)) for key, name, status in ROWS]
    store._until = float("inf")
    text = ExperienceKeyInput().render("key", "", {"id": "id"})
    assert '<option value="hero-banner">Hero &lt;1&gt;</option><option value="spring-sale">Spring (paused)<' in text
    assert "Winter (scheduled)" in text


def test_warning(rf):
    """Once the experiences are known, the editor learns which keys don't exist. Before that there is no warning."""
    request = rf.get("/")
    request.session = {}
    request._messages = FallbackStorage(request)
    store = get_metadata_store()
    store._until = float("inf")
    for known in ([], [ExperienceMeta("hero-banner", "Hero", ExperienceStatus("active"))]):
        store._experiences = known
        editing.warn_of_unknown(request, ["hero-banner", "<typo>", "<typo>"])
    with override_personalize(ENABLED=False):
        editing.warn_of_unknown(request, ["another"])
    assert [message.message[:39] for message in request._messages] == ["MoEngage has no experience “<typo>”, so"]


def test_first_request_with_wrong_settings(settings):
    """A mistake in the settings is no failure of the first request."""
    settings.MOE_PERSONALIZE = {"DEADLINE": "soon"}
    editing.read_early()


@pytest.mark.parametrize("enabled", [True, False])
def test_first_request_reads_the_experiences(metadata, monkeypatch, enabled):
    """The first request of a process reads them in the background. A package that is switched off reads nothing."""
    metadata.release.set()
    # The site's signal has a receiver that closes the databases of the tests.
    signal = Signal()
    monkeypatch.setattr(editing, "request_started", signal)
    with override_personalize(ENABLED=enabled):
        editing.prepare_forms()
        assert len(signal.receivers) == 1
        signal.send(sender=None)
        if enabled:
            settle()
        assert bool(metadata.threads) is enabled
        assert signal.receivers == []


def test_key_leads_to_no_other_template():
    """The template may have the key in its name. A key can't lead to other templates."""
    shared = ["moe_personalize/experience.html", "moe_personalize/default_experience.html"]
    assert list_templates("hero-banner") == ["moe_personalize/experiences/hero-banner.html", *shared]
    assert list_templates("../base") == list_templates("") == shared


def test_default_template(shown):  # noqa: F811 - the fixture
    """Without a template of the site, the texts of the experience are paragraphs."""
    experience = {"Title": "<b>", "Number": 7, "Empty": "", "offerings": [{"a": "b"}]}
    text = render_to_string("moe_personalize/default_experience.html", {"experience": experience})
    assert text.strip() == "<p>&lt;b&gt;</p>"


@pytest.mark.parametrize(
    ("template", "asked"),
    [
        ("page.html", ["hero", "offers"]),
        (["nope.html", "page.html"], ["hero", "offers"]),
        ("nope.html", ["hero"]),
        ((), ["hero"]),
        ("page.txt", ["hero"]),
    ],
)
def test_early_fetch(shown, settings, rf, template, asked):  # noqa: F811 - the fixture
    """One call has the keys of the content and of the template. A missing template is no failure."""
    source = "{% load moe_personalize %}{% experience_value 'offers' 'Title' %}"
    loaders = [("django.template.loaders.locmem.Loader", {"page.html": source})]
    settings.TEMPLATES = [
        {**settings.TEMPLATES[0], "APP_DIRS": False, "OPTIONS": {"loaders": loaders}},
        {
            "BACKEND": "tests.contrib.test_editing.TextTemplates",
            "DIRS": [],
            "APP_DIRS": False,
            "OPTIONS": {},
            "NAME": "t",
        },
    ]
    found = []

    def view(request):
        start_fetch(request, ["hero", ""], template)
        start_fetch(request, [""], template)
        found.extend(request.personalization._page.experience_keys)
        return HttpResponse()

    settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": [path("", view)]})
    Client().get("/")
    assert found == asked
    start_fetch(rf.get("/"), ["hero"], template)


class TextTemplates:
    """An engine whose templates can't be searched for keys."""

    def __init__(self, params):
        self.name = params["NAME"]

    def get_template(self, name):
        if name != "page.txt":
            raise TemplateDoesNotExist(name)
        return object()
