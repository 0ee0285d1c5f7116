"""The example site for patch review: series in any order, tests, and reports in their threads."""

from __future__ import annotations

import ast
import gzip
import importlib.util
import io
import itertools
import mailbox
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email import message_from_bytes
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner import Done, Entry
from qrunner.ctl.mbox import pieces
from qrunner.testing import FakeSite, judge, make_entry
from tests.documents import ROOT, blocks, commands, fits
from tests.test_tutorial import Shell, dialogue

pytest_plugins = ["qrunner.testing.plugin"]

REVIEW = ROOT / "etc" / "review"
LIST = "patches@lists.example.org"
Pairs = Sequence[tuple[Sequence[Entry], Any]]


def loaded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("review_series", REVIEW / "series.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


series = loaded()


def mail(subject: str, id: str, *above: str, author: str = "Bob <bob@dev.example>", **headers: str) -> Entry:
    """A mail to the list; what it answers stands in both headers."""
    fields = {"From": author, "Subject": subject, "Message-ID": f"<{id}>"}
    if above:
        fields |= {"In-Reply-To": f"<{above[-1]}>", "References": " ".join(f"<{one}>" for one in above)}
    fields = {name.replace("_", "-"): value for name, value in {**fields, **headers}.items() if value}
    head = "".join(f"{name}: {value}\n" for name, value in fields.items())
    return make_entry(f"{head}\n{id}\n".encode(), sender="bounces@dev.example", recipients=[LIST])


def looked_at(*entries: Entry) -> Pairs:
    """What becomes of these; of what is no patch nothing is said."""
    pairs: Pairs = judge(series.Series, *entries, options={"to": "series"})
    return [pair for pair in pairs if pair[1] != Done("no patch")]


def whole(*entries: Entry) -> list[str]:
    """The last lines of the mails of the one series that is whole, in its order."""
    ((members, fate),) = looked_at(*entries)
    assert fate.queue == "series"
    return [member.message.split(b"\n")[-2].decode() for member in members]


# What makes a series


COVER = mail("[PATCH 0/3] All", "c")
THREE = [mail(f"[PATCH {n}/3] Step", f"p{n}", "c") for n in (1, 2, 3)]


def test_a_series_is_whole_in_any_order_of_arrival_and_not_before() -> None:
    for order in itertools.permutations([COVER, *THREE]):
        for number in (1, 2, 3):
            assert looked_at(*order[:number]) == []
        assert whole(*order) == ["c", "p1", "p2", "p3"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_a_series_without_a_cover_letter_answers_its_first_patch(order: tuple[int, ...]) -> None:
    first, *more = [mail("[PATCH 1/3] x", "p1")] + [mail(f"[PATCH {n}/3] x", f"p{n}", "p1") for n in (2, 3)]
    entries = [[first, *more][n] for n in order]
    assert looked_at(*entries[:2]) == []
    assert whole(*entries) == ["p1", "p2", "p3"]


@pytest.mark.parametrize(
    "answers", [("References", "In-Reply-To"), ("References",), ("In-Reply-To",)], ids=" and ".join
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_later_version_in_the_thread_of_an_earlier_one_is_a_series_of_its_own(
    answers: Sequence[str], deep: bool
) -> None:
    left_out = {name.replace("-", "_"): "" for name in {"References", "In-Reply-To"} - set(answers)}
    versions = []
    for version, above in (("", ()), ("v2 ", ("c1",)), ("v3 ", ("c1", "c2"))):
        cover = f"c{len(versions) + 1}"
        chain = [*above, cover]
        found = [mail(f"[PATCH {version}0/2] x", cover, *above, **left_out)]
        for number in (1, 2):
            found.append(mail(f"[PATCH {version}{number}/2] x", f"{cover}p{number}", *chain, **left_out))
            chain += [f"{cover}p{number}"] * deep
        versions.append(found)
    entries = [entry for found in zip(*versions, strict=True) for entry in found]
    pairs = looked_at(*entries)
    assert [list(members) for members, _ in pairs] == versions


def test_a_later_version_without_a_cover_letter_may_answer_an_earlier_one() -> None:
    assert whole(mail("[PATCH v2 2/2] x", "p2", "old", "p1"), mail("[PATCH v2 1/2] x", "p1", "old")) == [
        "p1",
        "p2",
    ]


def test_two_who_answer_in_one_thread_do_not_mix() -> None:
    bob = [mail(f"[PATCH {n}/2] x", f"b{n}", *["start"]) for n in (1,)]
    eve = [mail("[PATCH 2/2] x", "e2", "start", author="eve@dev.example")]
    assert looked_at(*bob, *eve) == []


@pytest.mark.parametrize(
    "subject",
    [
        "[PATCH] x",
        "[RFC PATCH] x",
        "[list] [PATCH v2] x",
        "[dev][PATCHv3] x",
        "[patch] x",
        "[PATCH libvirt] x",
        "[PATCH 1/1] x",
    ],
)
def test_a_patch_alone_is_whole(subject: str) -> None:
    assert whole(mail(subject, "p")) == ["p"]


@pytest.mark.parametrize(
    "subject", ["Re: [PATCH] x", "hello", "", "[list] x", "Fwd: [PATCH 1/2] x", "[DISPATCH] x"]
)
def test_what_is_no_patch_ends_here(subject: str) -> None:
    entry = mail(subject, "p")
    assert judge(series.Series, entry, options={"to": "series"}) == [([entry], Done("no patch"))]


def test_a_patch_that_came_twice_counts_once() -> None:
    twice = mail("[PATCH 2/3] Step", "p2", "c", X_Came="by another way")
    pairs = looked_at(COVER, *THREE, twice)
    assert pairs[0] == ([twice], Done("a second copy"))
    assert [len(members) for members, _ in pairs] == [1, 4]


def test_a_whole_series_is_an_mbox_of_its_patches_byte_for_byte(tmp_path: Path) -> None:
    patches = [
        entry.replace(message=entry.message + b"From here\n>From there\n\xff\n\n\n") for entry in THREE
    ]
    ((_, fate),) = looked_at(COVER, *patches)
    path = tmp_path / "box"
    path.write_bytes(fate.entry.message)
    with open(path, "rb") as file:
        found = [piece.message for piece in pieces(file, 0, path.stat().st_size)]
    assert found == [entry.message.rstrip(b"\n") + b"\n" for entry in patches]
    assert len(mailbox.mbox(path)) == 3


# What strangers send


@pytest.mark.parametrize(
    "subjects",
    [
        ["[PATCH 5/2] x", "[PATCH 1/2] x"],
        ["[PATCH 0/0] x"],
        ["[PATCH 1/0] x"],
        ["[PATCH 2/1] x", "[PATCH 0/1] x"],
        ["[PATCH 1/9999] x"],
        ["[PATCH 12345678901234567890/3] x", "[PATCH 1/99999999999999] x"],
        ["[PATCH v" + "9" * 5000 + " 1/2] x"],
        ["[PATCH ١/٢] x"],
        ["[" * 3000 + "PATCH"],
        ["[" + "PATCH " * 100_000],
        ["[a]" * 100_000],
    ],
)
def test_a_count_that_makes_no_sense_stops_nothing(subjects: Sequence[str]) -> None:
    odd = [mail(subject, f"o{n}") for n, subject in enumerate(subjects)]
    pairs = looked_at(*odd, COVER, *THREE)
    assert [member for members, _ in pairs for member in members][-4:] == [COVER, *THREE]


def test_a_thread_of_thousands_is_looked_through_in_no_time() -> None:
    deep = [mail(f"[PATCH {n}/3000] x", f"o{n}", f"o{n - 1}", References="") for n in range(1, 2000)]
    assert looked_at(*deep, COVER, *THREE)[-1][0] == [COVER, *THREE]


def test_threads_that_go_round_in_a_circle_stop_nothing() -> None:
    circle = [mail(f"[PATCH {n}/2] x", f"o{n}", f"o{3 - n}") for n in (1, 2)]
    odd = [*circle, mail("[PATCH 1/2] x", "self", "self")]
    assert looked_at(*odd, COVER, *THREE)[-1][0] == [COVER, *THREE]


WORDS = st.sampled_from(
    [
        "[PATCH",
        "[",
        "]",
        "v2",
        "1/2",
        "0/1",
        "2/2",
        "x",
        "\t",
        "=?utf-8?q?=5BPATCH=0A?=",
        "ä",
        "<a@b>",
        "<",
        ",",
    ]
)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)
MAILS = st.builds(
    lambda subject, id, up, author: make_entry(
        f"Subject: {subject}\nMessage-ID: {id}\nReferences: {up}\nFrom: {author}\n\nx\n".encode(), sender=""
    ),
    TEXTS,
    TEXTS,
    TEXTS,
    TEXTS,
)


@given(st.lists(MAILS, max_size=6))
def test_whatever_comes_each_mail_is_named_once_at_most_and_a_report_can_be_made(
    entries: list[Entry],
) -> None:
    pairs: Pairs = judge(series.Series, *entries, options={"to": "series"}) if entries else []
    named = [entry.id for members, _ in pairs for entry in members]
    assert len(named) == len(set(named))
    for _, fate in pairs:
        if fate != Done("no patch") and fate != Done("a second copy"):
            report(fate.entry)


def test_the_corpus_of_odd_messages_stops_nothing() -> None:
    odd = [make_entry(path.read_bytes()) for path in sorted((ROOT / "tests/corpus").glob("*.eml"))]
    assert looked_at(*odd, COVER, *THREE)[-1][0] == [COVER, *THREE]


REAL = {  # where they are at hand: how many mails each has, and of how many the series that are whole
    "0004-multiple-patch-reviewed.mbox.gz": (5, [3]),
    "0009-obsolete-by.mbox.gz": (3, [1, 1, 1]),
    "0012-incomplete-series.mbox.gz": (4, []),
    "0016-nested-multipart.mbox.gz": (1, []),
    "0020-libvirt.mbox.gz": (1, [1]),
    "0032-supersedes-separate.mbox.gz": (3, []),
}


def test_series_that_people_have_sent_are_found() -> None:
    for name, (mails, found) in REAL.items():
        path = ROOT.parent / "shared" / "mail" / "patchew" / name
        if path.exists():
            data = gzip.decompress(path.read_bytes())
            entries = [make_entry(piece.message or b"") for piece in pieces(io.BytesIO(data), 0, len(data))]
            assert len(entries) == mails
            pairs = looked_at(*entries)
            assert [len(members) for members, _ in pairs] == found, name
            for members, fate in pairs:
                assert message_from_bytes(report(fate.entry).message)["In-Reply-To"] == members[0].header(
                    "Message-ID"
                )


# The report


def report(whole: Entry) -> Entry:
    options = {"to": "out", "from": "review@lists.example.org"}
    printed = whole.replace(message=b"Auto-Submitted: auto-generated\n\nAll is well.\n")
    fate = judge(series.Report, printed, options=options)
    assert fate.queue == "out"
    found: Entry = fate.entry
    return found


def test_a_report_answers_the_first_mail_of_its_series() -> None:
    subject = "[PATCH v2 0/3] =?utf-8?q?Gr=C3=BC=C3=9Fe?="
    cover = mail(subject, "c", "old", author="Bob =?utf-8?q?B=C3=BC?= <Bob@dev.example>")
    ((_, fate),) = looked_at(
        cover,
        *(mail(f"[PATCH v2 {n}/3] x", f"p{n}", "old", "c", author="bob@DEV.example") for n in (3, 1, 2)),
    )
    entry = report(fate.entry)
    told = message_from_bytes(entry.message)
    assert (told["In-Reply-To"], told["References"]) == ("<c>", "<old> <c>")
    assert entry.header("Subject") == "Re: [PATCH v2 0/3] Grüße"
    assert entry.message.partition(b"\n\n")[0].isascii()
    assert (entry.sender, set(entry.recipients)) == ("", {"bob@dev.example", LIST})
    assert told["To"] == f"bob@dev.example, {LIST}"
    assert re.fullmatch(r"<[0-9a-f]{40}@lists\.example\.org>", told["Message-ID"])
    assert all(len(told.get_all(name)) == 1 for name in ("From", "Date", "Auto-Submitted"))
    assert told.get_payload() == "All is well.\n"


# The site


def test_the_site_s_own_code_is_less_than_sixty_lines() -> None:
    text = (REVIEW / "series.py").read_text("utf-8")
    said = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
        if isinstance(node.body[0], ast.Expr)
    }
    code = [n for n, line in enumerate(text.splitlines(), 1) if line.strip() and n not in said]
    assert len(code) < 60


@pytest.fixture
def review(tmp_path: Path) -> Iterator[Callable[[], FakeSite]]:
    """The example, copied as its page says."""
    folder = tmp_path / "review"
    shutil.copytree(REVIEW, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o700)
    text = (folder / "qrunner.toml").read_text()
    text = re.sub(r'"(\./|\.")', lambda found: f'"{folder}/' if found[1] == "./" else f'"{folder}"', text)
    with FakeSite(text) as site:
        yield lambda: site


def example() -> Iterable[bytes]:
    return [bytes(message) for message in mailbox.mbox(REVIEW / "example.mbox", create=False)]


def test_the_example_s_series_is_tested_and_its_reports_go_to_its_thread(
    review: Callable[[], FakeSite],
) -> None:
    site = review()
    for message in example():
        site.enqueue("patches", message=message, sender="bob@dev.example", recipients=[LIST])
    site.run_until_idle(30)
    # The series of which the other parts are still to come.
    assert [entry.header("Subject") for entry in site.entries("patches")] == [
        "[PATCH 1/3] doc: A first step of three"
    ]
    assert [len(site.entries(queue)) for queue in ("hold", "shunt", "bad", "series", "reports", "out")] == [
        0
    ] * 6
    bodies: dict[str, Mapping[str, Any]] = {}
    for received in site.sink["mta"].messages:
        told = message_from_bytes(received.message)
        bodies[told.get_payload().replace("\r\n", "\n")] = told
        assert (received.sender, set(received.recipients)) == ("", {"bob@dev.example", LIST})
        assert told["In-Reply-To"] == "<20260102.v2.0@dev.example>"
        assert told["References"] == "<20260101.v1.0@dev.example> <20260102.v2.0@dev.example>"
        assert told["Subject"] == "Re: [PATCH v2 0/2] Queues for people"
    assert bodies.keys() == {
        "Patch 2 is not signed off.\n",
        "Patch 2: +because \nThese lines end with a blank.\n",
    }


def test_the_page_does_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "etc").symlink_to(ROOT / "etc")
    shell = Shell(tmp_path, commands(tmp_path / "bin"))
    try:
        for block in blocks("docs/REVIEW.md"):
            if block.language == "console":
                for command, shown in dialogue(block):
                    printed = shell.run(command)
                    assert fits(shown, printed), f"docs/REVIEW.md:{block.line}: {command}\n{printed}"
    finally:
        shell.close()


def test_what_the_page_shows_of_the_site_stands_there() -> None:
    for block in blocks("docs/REVIEW.md"):
        file = {"toml": "qrunner.toml", "python": "series.py"}.get(block.language)
        if file:
            lines = [line.strip() for line in (REVIEW / file).read_text("utf-8").splitlines()]
            assert [line for line in block.text.splitlines() if line.strip() not in lines] == []
