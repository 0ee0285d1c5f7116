"""A maildir that a door reads.

``box``: what has come, and the move from ``new`` to ``cur``. ``becoming``: what becomes of it. ``crossing``: from the
maildir into the queues, once. ``lock``: one reader, and what it had in hand when it died.

It lies on the jobs' floor, since a crossing joins the maildir with what the switchboard has staged.
"""
