"""Small sites with the caches of a third-party package. Each runs in a process of its own, which prints its answers."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.cache import cache
from django.core.management import call_command
from django.test import Client, RequestFactory

from tests.sites.settings import build_settings

VISITORS = ("ada", "bob")

VIEW_AS = "django_moe_personalize.contrib.view_as.middleware.ViewAsMiddleware"

TAGS = """{% load moe_personalize %}{% experience "hero" as hero %}
<h1>{{ hero.Title }}</h1><a href="{% click_url hero '/sale/' %}">Go</a>{% fallback %}default{% endexperience %}"""


def configure(*, templates: dict[str, str], **more: Any) -> None:
    """Set up Django as in production, with a hero for each visitor and these templates by name."""
    content = [{"audience": {"USER_AGENT": {"contains": v}}, "payload": {"Title": f"For {v}"}} for v in VISITORS]
    workspace = Path(tempfile.mkdtemp()) / "workspace.json"
    experiences = [{"key": "hero", "name": "Hero", "content": content}]
    workspace.write_text(json.dumps({"workspace_id": "CACHES", "api_key": "key", "experiences": experiences}))
    loaders = [("django.template.loaders.locmem.Loader", templates), "django.template.loaders.app_directories.Loader"]
    delivery = {"BACKEND": "django_moe_personalize.delivery.dummy.DummyDelivery"}
    moe = {"SANDBOX": str(workspace), "DEADLINE": 10, "DELIVERY": delivery}
    more["apps"] = [*more["apps"], "django_moe_personalize.contrib.view_as"]
    told = {"ROOT_URLCONF": "__main__", "templates": {"loaders": loaders}, "MOE_PERSONALIZE": moe, **more}
    settings.configure(**build_settings(**told))
    django.setup()
    call_command("migrate", run_syncdb=True, verbosity=0)


def answer(pages: dict[str, str]) -> dict[str, Any]:
    """Let both visitors open each page. Return the answers: text, Cache-Control, and the errors so far."""
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("django_moe_personalize").addHandler(handler)
    answers = {}
    for name, path in pages.items():
        cache.clear()
        for visitor in VISITORS:
            client = Client(headers={"User-Agent": visitor})
            response = client.get(path)
            answers[f"{name} {visitor}"] = {
                "text": response.content.decode(),
                "control": response.headers.get("Cache-Control", ""),
                "cookie": "moe_id" in response.cookies,
                "errors": list(errors),
                "again": client.get(path).content.decode(),
            }
    return answers


def preview(*paths: str) -> dict[str, tuple[str, list[str]]]:
    """Let staff open each page with a forced hero. Return its text and the keys of the new cache entries, by path."""
    from django.contrib.auth import get_user_model

    from django_moe_personalize.contrib.view_as.view import COOKIE, View

    staff = get_user_model().objects.create_superuser("staff", "staff@example.com", "staff")
    client, forced = Client(headers={"User-Agent": "ada"}), {"Title": {"value": "Forced", "data_type": "string"}}
    client.force_login(staff)
    view = View(issuer=str(staff.pk), forced={"hero": forced})
    client.cookies[COOKIE] = view.sign(RequestFactory().get("/", SERVER_NAME="testserver"))
    found = {}
    for path in paths:
        cache.clear()
        text = client.get(path).content.decode()
        found[path] = text, sorted(key for key in cache._cache if "site_root_paths" not in key)
    return found
