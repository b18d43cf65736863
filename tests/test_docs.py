import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
CODE = r"[A-Z]{3,}(?:-[A-Z0-9]+)+"  # SITE-LATE
NOT_CODES = {"COVID-19"}


def sources() -> str:
    packages = ("client", "server", "dsan_daemon", "dsan_model", "simulation")
    text = "".join(path.read_text() for package in packages for path in (ROOT / package).glob("*.py"))
    return text.replace("{number}", "N")  # SITE-OS-28 and its like share a paragraph


def test_every_code_has_one_paragraph_in_the_reference_and_every_paragraph_a_code() -> None:
    used = set(re.findall(f'"({CODE})"', sources())) - NOT_CODES
    page = (ROOT / "docs" / "reference" / "errors.md").read_text()
    headings = Counter(re.findall(f"^### ({CODE})$", page, re.MULTILINE))
    assert set(headings) == used
    assert set(headings.values()) == {1}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    for file, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text()):
        assert f"def {name}(" in (ROOT / file).read_text() if name else (ROOT / file).is_file(), (file, name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).is_file()] == []
