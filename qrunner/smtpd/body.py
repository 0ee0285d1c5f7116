"""A message on its way in: the bytes between DATA and the last dot (RFC 5321 section 4.5.2).

Guarantees: a message ends at CRLF, dot, CRLF and nowhere else, so that a bare CR or LF around a dot is content and
cannot begin a command (SMTP smuggling). Its bytes are kept as they came, but for the dots that were doubled. What is
too large is thrown away as it comes.
"""

from __future__ import annotations

END = b"\r\n.\r\n"


class Body:
    """A message that comes in piece by piece.

    :param head: what is to stand above it, whole lines; so its first line is like any other.
    :param max_size: of the message, the head not counted.
    """

    def __init__(self, head: bytes, max_size: int) -> None:
        assert head.endswith(b"\r\n")
        self._text = bytearray(head)
        self._head, self._max = len(head), max_size
        self._look_from = len(head) - 2
        self._dots = 0
        self.is_dropped = self.is_too_large = False

    @property
    def held(self) -> int:
        """Bytes that it takes up."""
        return len(self._text)

    def feed(self, data: bytes | bytearray) -> bytes | None:
        """Takes the next bytes in; once the message has ended, those that came after it, else None."""
        text = self._text
        text += data
        end = text.find(END, self._look_from)
        if end >= 0:
            rest = bytes(text[end + len(END) :])
            del text[end + 2 :]
            self._dots = 0
        else:
            rest = None
            self._look_from = max(len(text) - len(END) + 1, self._look_from)
        # What looks like the beginning of the end does not count before it is something else.
        if self.is_dropped or self._is_over(self._max + (2 if rest is None else 0)):
            self.is_too_large = self.is_too_large or not self.is_dropped
            self.drop()
        return rest

    def _is_over(self, most: int) -> bool:
        if len(self._text) - self._head - self._dots <= most:
            return False
        # Doubled dots are counted only now: hardly any message gets here.
        self._dots = self._text.count(b"\r\n.")
        return len(self._text) - self._head - self._dots > most

    def drop(self) -> None:
        """Keeps no more of it than what the end is found by."""
        self.is_dropped = True
        del self._text[: -len(END) + 1]
        self._look_from = 0

    def message(self) -> bytes:
        """The head and the message, once it has ended."""
        text = self._text
        return bytes(text.replace(b"\r\n.", b"\r\n") if b"\r\n." in text else text)


def has_longer_line(message: bytes, longest: int) -> bool:
    """Whether a line is longer than so many bytes, its CRLF not counted."""
    begin, size = 0, len(message)
    while size - begin > longest:
        # The last line end within reach: as few looks as can be.
        end = message.rfind(b"\r\n", begin, begin + longest + 2)
        if end < 0:
            return True
        begin = end + 2
    return False
