"""Use the installed wheel where no source tree is: its files are there, and a page is personalized.

Run by `tox run -e package` as `python -I`, from an empty folder, with the folder of the built sdist
as its argument. Not collected by pytest.
"""

import importlib.metadata
import re
import sys
import tarfile
from pathlib import Path
from typing import Any

DISTRIBUTION = "django-moe-personalize"
PACKAGE = "django_moe_personalize"
INSTALLED = ["py.typed", "sandbox/workspace.json", "templatetags/moe_personalize.py"]
SDIST = ["LICENSE", "README.md", "docs/index.md", "tests/settings.py", "example_project/manage.py", "tox.ini"]

urlpatterns: list[Any] = []

PAGE = (
    "{% load moe_personalize %}{% experience 'hero-banner' as hero %}<h1>{{ hero.Title }}</h1>"
    "{% fallback %}default{% endexperience %}{% personalize_scripts %}"
)


def check_files(sdist: Path) -> None:
    """Assert that all of the package is installed and nothing beside it, and what else a distributor gets."""
    installed = {str(path) for path in importlib.metadata.files(DISTRIBUTION) or () if path.suffix != ".pyc"}
    beside = {name.partition("/")[0] for name in installed} - {PACKAGE}
    assert all(name.endswith(".dist-info") for name in beside), f"installed beside the package: {sorted(beside)}"
    with tarfile.open(sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    missing = {name for name in names if name.startswith(f"{PACKAGE}/")} - installed
    assert not missing, f"not in the wheel: {sorted(missing)}"
    for name in INSTALLED:
        assert f"{PACKAGE}/{name}" in installed, f"{name} is not in the wheel"
    for name in SDIST:
        assert name in names, f"{name} is not in the sdist"


def check_page() -> None:
    """Assert that a site with the installed app shows the sandbox's content."""
    import django
    from django.conf import settings
    from django.http import HttpRequest, HttpResponse
    from django.template import engines
    from django.urls import include, path

    def page(request: HttpRequest) -> HttpResponse:
        return HttpResponse(engines["django"].from_string(PAGE).render({}, request))

    settings.configure(
        SECRET_KEY="package",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=[PACKAGE],
        MIDDLEWARE=[f"{PACKAGE}.middleware.PersonalizeMiddleware"],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        STATIC_URL="static/",
        MOE_PERSONALIZE={"SANDBOX": True, "DEADLINE": 5.0},
    )
    django.setup()
    urlpatterns.extend([path("", page), path("moe/", include(f"{PACKAGE}.urls"))])

    from django.test import Client

    response = Client(headers={"user-agent": "Mozilla/5.0 (X11; Linux x86_64)"}).get("/")
    assert response.status_code == 200
    html = response.content.decode()
    assert re.search(r"<h1>[^<]+</h1>", html), f"no experience on the page: {html}"


def main() -> None:
    import django_moe_personalize

    origin = Path(django_moe_personalize.__file__)
    assert "site-packages" in origin.parts, f"not the installed package: {origin}"
    version = importlib.metadata.version(DISTRIBUTION)
    assert django_moe_personalize.__version__ == version
    check_files(Path(sys.argv[1]) / f"{PACKAGE}-{version}.tar.gz")
    check_page()
    print("the installed package personalizes a page")


if __name__ == "__main__":
    main()
