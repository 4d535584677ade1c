"""Create the users and the pages: a home page and a sale page with a banner, and an article."""

from tests.sites.settings import create_users, create_wagtail_site


def create_pages() -> None:
    from tests.sites.wagtail_site.models import ArticlePage, HomePage

    body = [("banner", {"fallback": "Welcome"}), ("text", "The same for all")]
    home = create_wagtail_site(HomePage(title="Home", slug="home", body=body))
    home.add_child(instance=HomePage(title="Sale", slug="sale", body=body))
    home.add_child(instance=ArticlePage(title="About", slug="about", intro="About us"))


create_users()
create_pages()
