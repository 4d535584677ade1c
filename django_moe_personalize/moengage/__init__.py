"""The calls to MoEngage's Personalize API over HTTP, as Python values. No module here uses Django or the settings.

``client``: the three calls of the API and their results. ``data_api``: the Data API, for events of the site's own.
``clock``: MoEngage's time. ``errors``: the exception for a status other than 200. ``transport``: sends requests, with
spans for OpenTelemetry and Sentry. ``connection_pool``: keeps connections, and opens them in the background.
``connections``: opens one connection. ``frames``: the bytes that many requests share. ``base_url``: which URLs are
safe. ``http1``: HTTP/1.1, and one request in flight. ``types``: the values. ``json_values``: JSON as values.
"""
