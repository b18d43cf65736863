from pathlib import Path

import pytest
from table_factory import BAD_SETTINGS, BadSettings

from client.findings import Finding, FindingError
from client.site import SiteConfig, read_site
from dsan_model.preprocessing import PAPER_SHAPE_DHW


def write(folder: Path, text: str) -> Path:
    path = folder / "site.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path) -> Finding:
    with pytest.raises(FindingError) as caught:
        read_site(path)
    return caught.value.finding


def test_a_name_is_enough_and_the_rest_is_the_papers(tmp_path: Path) -> None:
    site = read_site(write(tmp_path, 'name = "tongji-1"'))
    assert site == SiteConfig(home=tmp_path.resolve(), name="tongji-1")
    assert site.recipe.shape_dhw == PAPER_SHAPE_DHW
    assert site.recipe.antialias is False
    assert (site.machine.workers, site.machine.threads, site.machine.device) == (0, 0, "auto")
    assert site.manifest == tmp_path.resolve() / "cohort.csv"
    assert site.store_folder == tmp_path.resolve() / "store"


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
        name = "b"
        cohort = "lists/cohort.csv"
        store = "/data/store"
        [recipe]
        shape_dhw = [24, 48, 40]
        antialias = true
        [machine]
        workers = 3
        threads = 2
        device = "cpu"
        [audit]
        max_slice_thickness_mm = 8
    """
    site = read_site(write(tmp_path, text))
    assert site.manifest == tmp_path.resolve() / "lists" / "cohort.csv"
    assert site.store_folder == Path("/data/store")
    assert site.recipe.shape_dhw == (24, 48, 40)
    assert site.recipe.antialias is True
    assert (site.machine.workers, site.machine.threads, site.machine.device) == (3, 2, "cpu")
    assert site.audit.max_slice_thickness_mm == 8.0


@pytest.mark.parametrize("bad", BAD_SETTINGS, ids=lambda bad: bad.name)
def test_bad_settings_are_refused_with_their_key_and_what_would_be_right(
    tmp_path: Path, bad: BadSettings
) -> None:
    finding = refusal(write(tmp_path, bad.text))
    assert (finding.code, finding.where) == (bad.code, f"site.toml, key {bad.key}")
    assert bad.says in f"{finding.message} {finding.fix}"


def test_further_faults_are_mentioned(tmp_path: Path) -> None:
    text = 'nmae = "a"\n[machine]\nworkers = -1'
    finding = refusal(write(tmp_path, text))
    assert finding.where == "site.toml, key nmae"
    assert "machine.workers" in finding.message


def test_a_syntax_error_has_its_line_and_column(tmp_path: Path) -> None:
    finding = refusal(write(tmp_path, 'name = "a"\nstore = store\n'))
    assert finding.code == "SITE-SYNTAX"
    assert "line 2, column 9" in finding.message


def test_a_missing_file_and_another_encoding_are_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "site.toml").code == "SITE-FILE"
    (tmp_path / "site.toml").write_bytes('name = "Universit\xe4t"'.encode("latin-1"))
    assert refusal(tmp_path / "site.toml").code == "SITE-ENCODING"


def test_a_site_cannot_be_changed(tmp_path: Path) -> None:
    site = read_site(write(tmp_path, 'name = "a"'))
    with pytest.raises(ValueError, match="frozen"):
        site.name = "b"  # type: ignore[misc]
