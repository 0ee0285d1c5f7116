"""Patch review: a series is put together from its mails, in whatever order they come; reports go to its thread."""

import re
from collections.abc import Iterator, Mapping, Sequence
from email.header import Header
from email.utils import format_datetime, parseaddr

from qrunner import BatchRunner, Done, Entry, Fate, Runner

PREFIX = re.compile(r"\s*(?:\[[^]]*\]\s*)*?\[([^]]*\bPATCH[^]]*)\]", re.IGNORECASE)


class Series(BatchRunner):
    """Hands a series on, as one mbox, when it is whole. An incomplete one stays; what is no patch ends here."""

    def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], Fate]]:
        above = {own_id(entry): answered(entry)[0] for entry in entries if answered(entry)}
        found: dict[tuple[str, str, str, int], dict[int, Entry]] = {}
        for entry in entries:
            prefix = PREFIX.match((entry.header("Subject") or "")[:900])
            if prefix is None:
                yield [entry], Done("no patch")
                continue
            count = re.search(r"\b(\d{1,4})/(\d{1,4})\b", prefix[1])
            version = re.search(r"(?:\b|PATCH)v(\d+)", prefix[1], re.IGNORECASE)
            number, total = map(int, count.groups()) if count else (1, 1)
            key = (thread(entry, above), author(entry), version[1] if version else "1", total)
            if found.setdefault(key, {}).setdefault(number, entry) is not entry:
                yield [entry], Done("a second copy")
        for (*_, total), parts in found.items():
            if len(parts.keys() - {0}) == total == max(parts) and not awaits_cover(parts):
                members = [parts[number] for number in sorted(parts)]
                yield members, joined(members, members[0 in parts :]).forward(self.options["to"])


def own_id(entry: Entry) -> str:
    return (entry.header("Message-ID") or entry.id).strip()


def answered(entry: Entry) -> list[str]:
    """The mails above it, the first of its thread first."""
    return re.findall(r"<[^<>\s]+>", f"{entry.header('References')} {entry.header('In-Reply-To')}")


def author(entry: Entry) -> str:
    return parseaddr(entry.header("From") or "")[1].lower()


def thread(entry: Entry, above: Mapping[str, str]) -> str:
    """The mail with which its thread began."""
    seen = {id := own_id(entry)}
    while (higher := above.get(id)) and higher not in seen:
        seen.add(id := higher)
    return id


def awaits_cover(parts: Mapping[int, Entry]) -> bool:
    """Whether the second patch answers a mail that has not come. The first may: an earlier version, for instance."""
    answers = answered(parts[min(2, max(parts))])
    return 0 not in parts and bool(answers) and answers[-1] not in map(own_id, parts.values())


def joined(members: Sequence[Entry], patches: Sequence[Entry]) -> Entry:
    """The patches as an mbox, for `git am --patch-format=mboxrd`, with what a report has to know."""
    quoted = (re.sub(rb"^(?=>*From )", b">", patch.message.rstrip(b"\n"), flags=re.M) for patch in patches)
    mbox = b"".join(b"From series Mon Sep 17 00:00:00 2001\n" + patch + b"\n\n" for patch in quoted)
    above, to = [*answered(members[0])[-5:], own_id(members[0])], {author(members[0]), *members[0].recipients}
    first = {"subject": members[0].header("Subject"), "thread": above, "to": sorted(to - {""})}
    return members[0].replace(message=mbox, meta={"first": first})


class Report(Runner):
    """Makes an answer to a series' first mail of what a test has printed."""

    def dispose(self, entry: Entry) -> Fate:
        first = entry.meta["first"]
        for name, value in (
            ("Message-ID", f"<{entry.id}@{self.options['from'].partition('@')[2]}>"),
            ("References", " ".join(dict.fromkeys(first["thread"]))),
            ("In-Reply-To", first["thread"][-1]),
            ("Subject", Header(f"Re: {first['subject']}", maxlinelen=0).encode(maxlinelen=0)),
            ("To", ", ".join(first["to"])),
            ("From", self.options["from"]),
            ("Date", format_datetime(entry.arrival)),
        ):
            entry = entry.with_header(name, value)
        return entry.replace(sender="", recipients=first["to"]).forward(self.options["to"])
