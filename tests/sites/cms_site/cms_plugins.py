"""The plugins of the site: a banner whose content is an experience, and a text that is the same for everyone."""

from cms.plugin_base import CMSPluginBase
from cms.plugin_pool import plugin_pool


@plugin_pool.register_plugin
class BannerPlugin(CMSPluginBase):
    """A banner with an experience."""

    name = "Banner"
    render_template = "cms_site/banner.html"


@plugin_pool.register_plugin
class TextPlugin(CMSPluginBase):
    """A text without an experience."""

    name = "Text"
    render_template = "cms_site/text.html"
