"""A match: the question that ``route`` and ``fanout`` ask of an entry.

A pattern is a glob, or a regular expression between slashes (``/…/``, found anywhere in the value); case is
ignored. Of several patterns under one key any may fit; of several keys all must.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

Header = Callable[[str], "str | None"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """One glob, or one regular expression between slashes. ValueError if it is neither."""

    text: str
    _regex: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_regex", _compiled(self.text))

    def fits(self, value: str) -> bool:
        return self._regex.search(value) is not None


def _compiled(text: str) -> re.Pattern[str]:
    is_regex = len(text) >= 2 and text[0] == text[-1] == "/"
    # fnmatch.translate anchors the end only; a regular expression is searched for, so a glob is anchored here.
    source = text[1:-1] if is_regex else r"\A" + fnmatch.translate(text)
    try:
        return re.compile(source, re.IGNORECASE | (re.NOFLAG if is_regex else re.DOTALL))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None


Patterns = tuple[Pattern, ...]


def patterns(texts: str | Iterable[str]) -> Patterns:
    """The patterns of one key: a single text, or a list of them. ValueError as Pattern."""
    return tuple(Pattern(text) for text in ([texts] if isinstance(texts, str) else texts))


def any_fits(these: Patterns, value: str) -> bool:
    """Whether any of the patterns fits."""
    return any(pattern.fits(value) for pattern in these)


@dataclass(frozen=True, slots=True)
class Match:
    """What is asked; an empty one fits everything. ``header`` and ``meta`` are pairs of a name and its patterns."""

    sender: Patterns = ()
    recipient: Patterns = ()
    domain: Patterns = ()
    header: tuple[tuple[str, Patterns], ...] = ()
    meta: tuple[tuple[str, Patterns], ...] = ()

    @property
    def splits(self) -> bool:
        """Whether the answer may differ from one recipient of an entry to the next."""
        return bool(self.recipient or self.domain)

    def fits(self, *, sender: str, recipient: str, header: Header, meta: Mapping[str, object]) -> bool:
        """Whether this recipient's copy of a message fits. ``header`` gives a field's text, or None."""
        return self.fits_recipient(recipient) and self.fits_message(sender=sender, header=header, meta=meta)

    def fits_recipient(self, address: str) -> bool:
        """The part of the question that is asked of each recipient by itself."""
        if self.recipient and not any_fits(self.recipient, address):
            return False
        return not self.domain or any_fits(self.domain, address.rpartition("@")[2])

    def fits_message(self, *, sender: str, header: Header, meta: Mapping[str, object]) -> bool:
        """The part of the question that has one answer for the whole message."""
        if self.sender and not any_fits(self.sender, sender):
            return False
        # The metadata first: it costs nothing, while a header has to be parsed.
        return all(_meta_fits(these, meta.get(key)) for key, these in self.meta) and all(
            _header_fits(these, header(name)) for name, these in self.header
        )


def _header_fits(these: Patterns, value: str | None) -> bool:
    return value is not None and any_fits(these, value)


def _meta_fits(these: Patterns, value: object) -> bool:
    """Metadata is JSON: a list fits if one of its values does, true and false are spelled as in JSON."""
    if isinstance(value, (list, tuple)):
        return any(_meta_fits(these, one) for one in value)
    if value is None or isinstance(value, Mapping):
        return False
    return any_fits(these, str(value).lower() if isinstance(value, bool) else str(value))
