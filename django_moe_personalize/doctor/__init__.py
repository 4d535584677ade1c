"""The doctor: find out whether personalization works on this site and, if not, how to fix it.

``report`` runs the doctor for ``manage.py moe_doctor``. ``vendor`` examines MoEngage. ``site`` examines the cache, the
processes, the delivery and the installed packages. ``asking`` and ``drift`` serve the other commands. ``health`` is a
view for health checks, which tells the state of one process and calls nothing.
"""
