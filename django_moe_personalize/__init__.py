"""Server-side personalization for Django with MoEngage.

The story of a page, in the order of the modules:

request     ``middleware.py``   attaches ``request.personalization``, starts early, seals the response
attributes  ``attributes.py``   user agent, IP, day, hour, UTM and custom in-session attributes
            ``identity.py``     customer id, identifiers, anonymous id
fetch       ``planning.py``     which experience keys the page needs
            ``fetch.py``        consent, cache, breaker, one bulk call, one deadline; never raises
context     ``context.py``      ``Personalization``: the lazy mapping key → ``Experience``
render      ``render.py``       payload → safe HTML, template tags, tracking marks
track       ``track.py``        impressions and clicks → events → ``delivery/``
"""

__version__ = "0.1.0"
