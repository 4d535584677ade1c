"""Delivery: how events reach MoEngage. One interface (``base``), several deliveries, chosen by ``DELIVERY``.

``thread`` sends events from a background thread. ``database`` keeps events in the outbox, sends them in batches, and
decides when to retry a failed event. ``outbox`` has the queries on the tables and chooses no retry delay.
``celery`` and ``tasks`` hand events over to a queue. They share ``queued``, which also has the task ``deliver_outbox``.
``immediate`` sends events while the caller waits. ``dummy`` keeps events in memory and sends nothing. All deliveries
use ``sending``: it makes one attempt to send, and holds back the events of customers who withdrew consent.
"""
