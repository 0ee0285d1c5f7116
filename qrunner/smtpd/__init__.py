"""SMTP and LMTP as a server speaks them: what a door is made of (RFC 5321, RFC 2033).

``listener`` accepts connections, ``room`` has them all, ``session`` is one of them and ``talk`` what is said over it.
``body`` reads a message, ``grammar`` takes MAIL and RCPT apart, ``trace`` writes the ``Received:`` line, ``answers``
words the replies. Who decides is a ``terms.Keeper``.
"""
