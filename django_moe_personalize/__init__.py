"""Server-side personalization for Django with MoEngage.

The story of a page, in the order of its steps:

request     ``middleware.py``   attach ``request.personalization``, start early, mark the response as private
attributes  ``visitor/``        who asks, with which in-session attributes, and what the visitor allows
fetch       ``planning.py``     which experience keys the page needs
            ``fetching/``       memory, the site's cache, one call, one deadline; never raises
context     ``page.py``         the private side of one request
            ``context/``        the mapping experience key → ``Experience`` of the request
render      ``rendering.py``    payload → safe HTML, links, marks, headers
track       ``tracking/``       impressions and clicks → events
            ``delivery/``       events → MoEngage: thread, outbox, Celery, Django tasks

Below the story: ``moengage/`` speaks the vendor's API and ``sandbox/`` imitates it, neither with Django.
``runtime.py`` holds what a process keeps, ``conf/`` reads the settings, ``resilience.py`` bounds time and threads.
For developers and operators: ``checks/``, ``doctor/``, ``management/``, ``testing.py``.
"""

__version__ = "0.1.0"
