"""Create the users and the pages: pages with a banner and with an experience block, and an article."""

from tests.sites.settings import create_users, create_wagtail_site


def create_pages() -> None:
    from wagtail.rich_text import RichText

    from tests.sites.wagtail_site.models import ArticlePage, HomePage

    body = [("banner", {"fallback": "Welcome"}), ("text", "The same for all")]
    home = create_wagtail_site(HomePage(title="Home", slug="home", body=body))
    home.add_child(instance=HomePage(title="Sale", slug="sale", body=body))
    value = {"experience_key": "hero-banner", "fallback": [("text", RichText("<p>Welcome</p>"))]}
    home.add_child(instance=HomePage(title="Club", slug="club", body=[("experience", value)]))
    home.add_child(instance=ArticlePage(title="About", slug="about", intro="About us"))


create_users()
create_pages()
