"""qrunner as installed: a copy that the owner of the queues may read, wherever checkout and environment lie."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.injecting import PROGRAM

ROOT = Path(__file__).parents[2]
# What pyproject.toml names, as it is imported.
PACKAGES = ("qrunner", "aiosmtplib", "click", "dns", "filelock")


def owner() -> str:
    """A user who is neither root nor Postfix's: whoever Debian has for lists, else for daemons."""
    names = {user.pw_name for user in pwd.getpwall()}
    return next(name for name in ("list", "daemon", "nobody") if name in names)


@dataclass(frozen=True)
class Installed:
    """A site and the programs that run it, all under one folder; the site belongs to ``owner()``."""

    root: Path
    python: str

    @property
    def inject(self) -> Path:
        """The pipe."""
        return self.root / "bin" / "qrunner-inject"

    @property
    def site(self) -> Path:
        """The folder of the site."""
        return self.root / "site"

    @property
    def config(self) -> Path:
        """Its configuration."""
        return self.site / "etc" / "qrunner.toml"

    @property
    def queue_dir(self) -> Path:
        """Its queues."""
        return self.site / "qfiles"

    def ctl(self, *words: str, code: int = 0, **environment: str) -> str:
        """Runs `qrunner-ctl` as root, who becomes the owner; what it printed. AssertionError for another exit code."""
        command = [
            self.python,
            "-P",
            "-c",
            "from qrunner.ctl import main; main()",
            "-c",
            str(self.config),
            *words,
        ]
        result = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(self.root / "lib"), **environment},
        )
        assert result.returncode == code, (
            f"{words}: {result.returncode}\n{result.stdout}{result.stderr}{self.log()}"
        )
        return result.stdout

    def log(self) -> str:
        """The end of the log."""
        path = self.site / "var" / "log" / "qrunner.log"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""


def install(root: Path) -> Installed:
    """Lays out the programs and the default site in a folder that everybody may pass through."""
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.submodule_search_locations
        source = spec.submodule_search_locations[0]
        # With what has been compiled of it: the owner can't write that down there.
        shutil.copytree(source, root / "lib" / name)
    (root / "bin").mkdir()
    shutil.copy(PROGRAM, root / "bin" / "qrunner-inject")
    for folder in (root / "lib", root / "bin"):
        _make_readable(folder)
    return Installed(root, _python(root / "lib"))


def lay_out_default_site(made: Installed, ports: dict[int, int]) -> None:
    """The site of etc/, with other ports in the place of its own."""
    shutil.copytree(ROOT / "etc", made.site / "etc", ignore=shutil.ignore_patterns("__pycache__", "demo*"))
    text = made.config.read_text()
    for old, new in ports.items():
        text, count = re.subn(rf"^port = {old}$", f"port = {new}", text, flags=re.MULTILINE)
        assert count == 1
    made.config.write_text(text)
    made.queue_dir.mkdir()
    (made.site / "var").mkdir()
    _make_readable(made.site)
    for path in (made.site, *made.site.rglob("*")):
        shutil.chown(path, owner())


def _make_readable(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)


def _python(lib: Path) -> str:
    """An interpreter that the owner can start: the one that runs us, or the system's."""
    for python in (os.path.realpath(sys.executable), "/usr/bin/python3"):
        command = [python, "-P", "-c", "import qrunner.master"]
        environment = {**os.environ, "PYTHONPATH": str(lib)}
        try:
            result = subprocess.run(command, user=owner(), env=environment, capture_output=True, check=False)
        except OSError:
            continue
        if result.returncode == 0:
            return python
    raise AssertionError(f"{owner()} can start neither {sys.executable} nor /usr/bin/python3 3.11")
