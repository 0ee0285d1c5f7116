"""For the tests of a site's own code: no network, no disk, no sleep.

``make_entry`` makes an entry, ``judge`` shows what a runner or a handler decides about it, ``FakeSite`` runs a whole
configuration in this process, on a clock that is advanced by hand and with a ``Sink`` in every host's place.
``SwitchboardContract`` is the suite for a switchboard of one's own. With pytest, the fixtures ``fake_clock`` and
``fake_site`` are there without an import.

::

    def test_spam_is_finished():
        assert judge(Gate, make_entry(headers={"X-Spam": "yes"})) == Done("spam")

    def test_what_is_late_arrives(fake_site):
        site = fake_site(CONFIGURATION)
        site.sink["mta1"].reply("RCPT", "451 4.7.1 later")
        site.enqueue("out", recipients=["bob@example.net"])
        site.run_until_idle()
        site.clock.advance("10m")
        site.run_until_idle()
        assert site.sink["mta1"].messages[0].recipients == ("bob@example.net",)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qrunner.smtp.sink import Sink
from qrunner.testing.clock import FakeClock
from qrunner.testing.entries import make_entry
from qrunner.testing.judging import judge
from qrunner.testing.site import FakeSite

if TYPE_CHECKING:
    from qrunner.testing.contract import DamageContract, SwitchboardContract

__all__ = [
    "DamageContract",
    "FakeClock",
    "FakeSite",
    "Sink",
    "SwitchboardContract",
    "judge",
    "make_entry",
]


def __getattr__(name: str) -> Any:
    """The suites want pytest, which a program that only imports ``FakeSite`` may not have (PEP 562)."""
    if name in ("DamageContract", "SwitchboardContract"):
        from qrunner.testing import contract

        return getattr(contract, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
