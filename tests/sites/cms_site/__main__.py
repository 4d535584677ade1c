"""Create the users and the pages."""

from django.db import transaction

from tests.sites.settings import create_users


@transaction.atomic
def create_pages() -> None:
    """Create pages with a banner and with our own plugin, and an article without one."""
    from cms.api import add_plugin, create_page
    from django.contrib.auth import get_user_model

    editor = get_user_model().objects.get(username="edith")
    for title, plugins in (("Home", "Text Banner"), ("Sale", "Banner Text"), ("About", "Text"), ("Club", "")):
        page = create_page(
            title, "cms_site/page.html", "en", created_by=editor, slug=title.lower(), reverse_id=title.lower()
        )
        if title == "Home":
            page.set_as_homepage()
        placeholder = page.get_placeholders("en").get(slot="content")
        for plugin in plugins.split():
            add_plugin(placeholder, f"{plugin}Plugin", "en")
        if title == "Club":
            parent = add_plugin(placeholder, "ExperiencePlugin", "en", experience_key="hero-banner")
            add_plugin(placeholder, "TextPlugin", "en", target=parent)


create_users()
create_pages()
