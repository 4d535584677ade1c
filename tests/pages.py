"""Reading the pages of the test site."""

import html
import re

BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
"""The user agent of a person."""


def text(response):
    """Return a response's body as text, streamed ones too."""
    if not response.streaming:
        return html.unescape(response.content.decode())
    if response.is_async:
        from asgiref.sync import async_to_sync

        async def collect():
            return b"".join([part async for part in response])

        return html.unescape(async_to_sync(collect)().decode())
    return html.unescape(b"".join(response).decode())


def title(response):
    """Return what the hero's heading says."""
    return re.search(r"<h1>(.*?)</h1>", text(response))[1]
