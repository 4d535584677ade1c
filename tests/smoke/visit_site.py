"""Visit every page of the site in this folder, follow its links, and print the findings as JSON.

test_docs_typed.py runs it in a site that it has typed from the documents. The argument is a JSON list of templates, and
each template becomes a page too.
"""

import importlib
import json
import re
import sys
from pathlib import Path

import django
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse
from django.template import engines
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, path

BROWSER = {"host": "localhost", "user-agent": "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"}
templates = json.loads(sys.argv[1])


def show(request: HttpRequest, number: int) -> HttpResponse:
    return HttpResponse(engines["django"].from_string(templates[number]).render({}, request))


def list_paths(resolver: URLResolver, prefix: str = "/") -> list[str]:
    """Return the paths without arguments, except those of the admin and of this package."""
    found = []
    for pattern in resolver.url_patterns:
        place = f"{prefix}{pattern.pattern}"
        if isinstance(pattern, URLResolver):
            found += [] if place in ("/admin/", "/moe/", "/view-as/") else list_paths(pattern, place)
        elif isinstance(pattern, URLPattern) and "<" not in place:
            found.append(place)
    return found


def main() -> None:
    django.setup()
    from django.conf import settings
    from django.contrib.auth.models import User

    from django_moe_personalize.client import get_engine
    from django_moe_personalize.delivery.base import get_delivery

    found = {"checks": [f"{message.id}: {message.msg}" for message in run_checks()], "wrong": {}}
    found["settings"] = sorted(settings.MOE_PERSONALIZE)
    for file in Path("shop").glob("*.py"):
        importlib.import_module(f"shop.{file.stem}")
    root = importlib.import_module(settings.ROOT_URLCONF)
    paths = list_paths(get_resolver())
    root.urlpatterns += [path("template/<int:number>/", show)]
    browser, member = Client(headers=BROWSER), Client(headers=BROWSER)
    member.force_login(User.objects.get_or_create(username="ada")[0])
    links = set()
    for each in [*paths, "/?utm_medium=email", "/", *(f"/template/{n}/" for n in range(len(templates)))]:
        for client in (browser, member):
            page = client.get(each, follow=True)
            if page.status_code != 200:
                found["wrong"][each] = page.status_code
        links |= set(re.findall(r'<(?:a|form)[^>]* (?:href|action)="(/[^"]*)"', browser.get(each, follow=True).text))
    for link in links:
        if (status := browser.get(link, follow=True).status_code) != 200:
            found["wrong"][link] = status
    found |= {
        "paths": paths,
        "links": len(links),
        "german": bool(re.search("Montag|Gratis", browser.get("/de/start/").text)),
    }
    # A browser of its own, whose counts are those of its pages.
    get_delivery().flush(timeout=30)
    get_engine().ledger.clear()
    browser = Client(headers=BROWSER)
    pages = [browser.get(each).text for each in ("/", "/", "/?utm_medium=email", "/")]
    found |= {"titles": [(re.findall("<h1>(.*?)</h1>", page) or [""])[0] for page in pages], "home": pages[0]}
    if link := re.search(r'href="(/moe/click/[^"]+)"', pages[-1]):
        found["click"] = browser.get(link[1]).headers["Location"]
    get_delivery().flush(timeout=30)
    if hero := get_engine().ledger.counts().get("hero-banner"):
        found["counts"] = [hero.impressions, hero.clicks]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
