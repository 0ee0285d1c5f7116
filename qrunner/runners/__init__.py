"""The stock runners, one file each: ``class = "incoming"`` is ``incoming.IncomingRunner``."""
