"""The calls to MoEngage's Personalize API over HTTP, as Python values. No module here uses Django or the settings.

``client``: the three calls of the API, and the protocol of a transport. ``base_url``: which URLs are safe.
``transport``: sends requests and keeps connections. ``connections``: opens them, through proxies and with TLS.
``http1``: HTTP/1.1, and one request in flight. ``reader``: from a response to values, or to an exception.
``types``: the values. ``json_values``: strict JSON, and unchangeable dicts and lists.
"""
