from pathlib import Path

import pytest

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


@pytest.mark.parametrize(
    ("text", "key", "fix"),
    [
        ('name = "a"\nchort = "x.csv"', "chort", "Did you mean cohort?"),
        ('nmae = "a"', "nmae", "Did you mean name?"),
        ('name = "a"\n[machine]\nworker = 2', "machine.worker", "Did you mean workers?"),
        ('name = "a"\n[recipe]\nshape_DHW = [8, 8, 8]', "recipe.shape_DHW", "Did you mean shape_dhw?"),
        ('name = "a"\n[machines]\nworkers = 2', "machines", "Did you mean machine?"),
        ('name = "a"\n[machine]\nzzz = 2', "machine.zzz", "Known here are workers, threads, device."),
        ('name = "a"\nhome = "/x"', "home", "Remove it."),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(
    tmp_path: Path, text: str, key: str, fix: str
) -> None:
    finding = refusal(write(tmp_path, text))
    assert (finding.code, finding.where, finding.fix) == ("SITE-KEY", f"site.toml, key {key}", fix)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('name = "Tongji Hospital"', "name", "'Tongji Hospital'"),
        ('name = ""', "name", "''"),
        (f'name = "{"a" * 33}"', "name", "a" * 33),
        ("name = 3", "name", "3"),
        ('name = "a"\nstore = ""', "store", "''"),
        ('name = "a"\n[machine]\nworkers = "2"', "machine.workers", "'2'"),
        ('name = "a"\n[machine]\nworkers = true', "machine.workers", "True"),
        ('name = "a"\n[machine]\nworkers = -1', "machine.workers", "-1"),
        ('name = "a"\n[machine]\ndevice = "gpu"', "machine.device", "'gpu'"),
        ('name = "a"\n[recipe]\nshape_dhw = [138, 256]', "recipe.shape_dhw[2]", "[138, 256]"),
        ('name = "a"\n[recipe]\nshape_dhw = [138, 256, 4]', "recipe.shape_dhw[2]", "4"),
        ('name = "a"\n[recipe]\nshape_dhw = [138, 256, 256.0]', "recipe.shape_dhw[2]", "256.0"),
        ('name = "a"\n[recipe]\nantialias = 1', "recipe.antialias", "1"),
        ('name = "a"\nrecipe = 3', "recipe", "3"),
        ('name = "a"\n[audit]\nmax_slice_thickness_mm = nan', "audit.max_slice_thickness_mm", "nan"),
    ],
)
def test_a_bad_value_is_named_with_its_key(tmp_path: Path, text: str, key: str, value: str) -> None:
    finding = refusal(write(tmp_path, text))
    assert (finding.code, finding.where) == ("SITE-VALUE", f"site.toml, key {key}")
    assert value in finding.message


def test_a_missing_name_is_named(tmp_path: Path) -> None:
    finding = refusal(write(tmp_path, 'cohort = "x.csv"'))
    assert (finding.code, finding.where) == ("SITE-MISSING", "site.toml, key name")


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
