"""Create the users and the pages."""

from tests.sites.settings import create_users


def create_pages() -> None:
    """Put a home page with a banner and an article into the page tree."""
    from wagtail.models import Page, Site

    from tests.sites.wagtail_site.models import ArticlePage, HomePage

    root = Page.get_first_root_node()
    root.get_children().delete()
    body = [("banner", {"fallback": "Welcome"}), ("text", "The same for all")]
    home = root.add_child(instance=HomePage(title="Home", slug="home", body=body))
    home.add_child(instance=HomePage(title="Sale", slug="sale", body=body))
    home.add_child(instance=ArticlePage(title="About", slug="about", intro="About us"))
    Site.objects.create(hostname="localhost", root_page=home, is_default_site=True)


create_users()
create_pages()
