"""The wire: MoEngage's Personalize API over HTTP, as Python values. It knows neither Django nor the settings.

``client``: the three calls of the API; ``errors``: the exception for a status other than 200.
``messages``: requests, responses, and the protocol of a transport; ``base_url``: which URLs are safe.
``transport``: sends requests and keeps connections; ``connections``: opens them, through proxies and with TLS.
``exchange``: one request in flight; ``http1``: HTTP/1.1 as bytes.
``reader``, ``offerings``, ``strict_json``: from the JSON of a response to values; ``types``, ``frozen``: the values.
"""
