"""The documents: every link in them leads somewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def build(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "docs" / "build.py", root / "build"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of one document."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "build.py").write_bytes((ROOT / "docs" / "build.py").read_bytes())
    (tmp_path / "docs" / "OTHER.md").write_text("# Other\n\n## Two words, & more\n\n## Again\n\n## Again\n")
    return tmp_path


def test_every_link_in_our_documents_leads_somewhere(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", tmp_path], capture_output=True, text=True
    )
    assert run.stderr == ""
    assert (tmp_path / "README.html").exists()
    assert (tmp_path / "docs" / "GLOSSARY.html").exists()


def test_links_between_documents_become_links_between_pages(copy: Path) -> None:
    links = "[a](docs/OTHER.md) [b](docs/OTHER.md#two-words--more) [c](docs/OTHER.md#again-1) [d](#here)"
    (copy / "README.md").write_text(f"# Here\n\n{links} [out](https://example.org/x.md)\n")
    assert build(copy).returncode == 0
    page = (copy / "build" / "README.html").read_text()
    assert 'href="docs/OTHER.html#two-words--more"' in page
    assert 'href="https://example.org/x.md"' in page
    assert '<h2 id="again-1">' in (copy / "build" / "docs" / "OTHER.html").read_text()


@pytest.mark.parametrize("target", ["docs/NONE.md", "docs/OTHER.md#three-words", "#there", "../outside.md"])
def test_a_link_that_leads_nowhere_is_named_by_file_and_line_and_nothing_is_written(
    copy: Path, target: str
) -> None:
    (copy / "README.md").write_text(f"# Here\n\nSee\n\n[this]({target}).\n")
    run = build(copy)
    assert run.returncode == 1
    assert run.stderr.startswith(f"README.md:5: {target}: there is no such")
    assert not (copy / "build").exists()
