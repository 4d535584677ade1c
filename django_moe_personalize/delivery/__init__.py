"""Delivery: how events reach MoEngage. One interface (``base``), several deliveries, chosen by ``DELIVERY``.

``thread`` sends from a background thread. ``database`` keeps events in the outbox, and leases, sends and retries them;
``outbox`` has its queries, ``drain`` its task. ``celery`` and ``tasks`` hand events over to a queue; ``queued`` is what
they share. ``immediate`` sends while the caller waits, ``dummy`` only remembers. ``sending`` makes one attempt,
``erasure`` holds back the events of customers who withdraw, ``exits`` sends the rest when a process ends.
"""
