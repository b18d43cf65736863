import re
from dataclasses import replace
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from client.case_sketch import sketch_path
from client.mask_names import MaskNames
from client.preparation import PreparedEntry, prepare_cohort
from client.qc_figures import hu_histogram_svg, ratio_histogram_svg
from client.qc_page import case_rows, demographics, qc_html, write_qc_page
from client.site import SiteConfig
from dsan_model.cases import Case, Label

SECTION = re.compile(r'<section class="case ([a-z-]+)">(.*?)</section>', re.DOTALL)


def case(label: Label, ratio: float) -> Case:
    return Case("c", "p", label, ratio)


def entry(case_id: str, patient_id: str, age: float | None = None, sex: str | None = None) -> PreparedEntry:
    return PreparedEntry(
        Case(case_id, patient_id, Label.CAP, 0.0),
        Path("x"),
        MaskNames("given", "given"),
        age,
        sex,
        date(2020, 1, 1),
        None,
    )


@pytest.fixture
def site(cohort_factory: ModuleType, tmp_path: Path) -> SiteConfig:
    """Two good cases, one without infection though COVID-19, one that is left out."""
    for number, rows in enumerate((2, 1, 0)):
        cohort_factory.write_case(tmp_path, f"c{number}", rows)
    line = cohort_factory.line
    lines = (line("c0"), line("c1", "COVID-19"), line("c2", "COVID-19"), line("gone"))
    return cohort_factory.write_site(tmp_path, *lines)


class _Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    VOID = frozenset({"meta", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_case_has_a_row_and_bad_ones_come_first(site: SiteConfig) -> None:
    result = prepare_cohort(site, workers=1)
    rows = case_rows(result)
    assert [(row.case_id, row.verdict) for row in rows] == [
        ("gone", "left out"),
        ("c2", "look"),
        ("c0", "good"),
        ("c1", "good"),
    ]
    sections = SECTION.findall(qc_html(site, result))
    assert [kind for kind, _ in sections] == ["left-out", "look", "good", "good"]
    assert "COHORT-MISSING" in sections[0][1]
    assert "IMAGE-INFECTION-EMPTY" in sections[1][1]
    assert "<dd>0.0119</dd>" in sections[2][1]  # 40 of 3360 voxels
    assert "<dd>24 x 20 x 26</dd>" in sections[2][1]


def test_a_row_has_two_pictures_with_both_contours_and_a_histogram(site: SiteConfig) -> None:
    sections = SECTION.findall(qc_html(site, prepare_cohort(site, workers=1)))
    used = [text for kind, text in sections if kind != "left-out"]
    assert all(text.count("data:image/jpeg;base64,") == 2 for text in used)
    assert all(len(re.findall(r'class="lung" d="M[^"]+Z"', text)) == 2 for text in used)
    contours = [len(re.findall(r'class="infection" d="M[^"]+Z"', text)) for text in used]
    assert contours == [0, 2, 2]  # c2 has none
    assert all("Histogram of HU in the lungs" in text for text in used)


def test_a_case_that_was_left_out_is_shown_with_its_masks_where_they_can_be_read(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    for case_id in ("c0", "c1", "c2"):
        cohort_factory.write_case(tmp_path, case_id)
    empty = np.zeros(cohort_factory.SHAPE_DHW, np.uint8)
    cohort_factory.write_image(tmp_path / "c0_lung.nii.gz", empty)  # refused for its mask
    (tmp_path / "c1.nii.gz").write_bytes(b"nothing")  # refused for its scan
    site = cohort_factory.write_site(tmp_path, *(cohort_factory.line(f"c{number}") for number in range(3)))
    (seen, (unseen_kind, unseen), _) = SECTION.findall(qc_html(site, prepare_cohort(site, workers=1)))
    assert seen[0] == unseen_kind == "left-out"
    assert seen[1].count("data:image/jpeg;base64,") == 2
    assert len(re.findall(r'class="infection" d="M[^"]+Z"', seen[1])) == 2
    assert 'class="lung" d=""' in seen[1]
    assert "IMAGE-LUNG-EMPTY" in seen[1]
    assert "data:image" not in unseen
    assert re.search(r'class="view empty">No picture: .*IMAGE-', unseen)


def test_the_patients_right_is_marked_on_a_dark_box_in_both_planes(site: SiteConfig) -> None:
    html = qc_html(site, prepare_cohort(site, workers=1))
    n_views = html.count('<svg class="view"')
    assert n_views == 6
    assert len(re.findall(r'<rect class="side" [^>]*/><text [^>]*>R</text></svg>', html)) == n_views
    assert ".view .side { fill: #000; }" in html


def test_the_page_is_one_file_that_is_well_formed_and_loads_nothing(site: SiteConfig) -> None:
    page = write_qc_page(site, prepare_cohort(site, workers=1))
    assert page == site.home / "qc.html"
    parser = _Balance()
    parser.feed(page.read_text())
    assert parser.open == []
    assert parser.sources
    assert all(source.startswith("data:image/") for source in parser.sources)
    assert "<script" not in page.read_text()


def test_what_the_hospital_wrote_is_escaped(cohort_factory: ModuleType, tmp_path: Path) -> None:
    cohort_factory.write_case(tmp_path, "c0")
    line = cohort_factory.line("c0", patient_id="<script>1</script>")
    site = cohort_factory.write_site(tmp_path, line, cohort_factory.line("<b>x</b>", "<i>CAP</i>"))
    html = qc_html(site, prepare_cohort(site, workers=1))
    assert "<script>" not in html
    assert "<b>x" not in html
    assert "&lt;script&gt;1" in html


def test_the_page_counts_who_made_the_masks_and_says_where_ratios_do_not_compare(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    for case_id in ("c0", "c1"):
        cohort_factory.write_case(tmp_path, case_id)
    lines = cohort_factory.line("c0"), cohort_factory.line("c1", infection_mask="")
    site = cohort_factory.write_site(tmp_path, *lines, settings='[segmentation]\ninfection = "crude"\n')
    html = qc_html(site, prepare_cohort(site, workers=1))
    assert '<tr><td>given</td><td class="n">1</td></tr>' in html
    assert '<tr><td>lungs given, infection crude-2</td><td class="n">1</td></tr>' in html
    assert "ratios of different segmenters do not compare" in html


def test_a_case_without_a_sketch_is_still_shown(site: SiteConfig) -> None:
    result = prepare_cohort(site, workers=1)
    sketch_path(result.entries[0].path).unlink()
    sections = SECTION.findall(qc_html(site, result))
    assert sum("No picture is kept" in text for _, text in sections) == 1


def test_a_cohort_without_a_usable_case_has_a_page(cohort_factory: ModuleType, tmp_path: Path) -> None:
    site = cohort_factory.write_site(tmp_path, cohort_factory.line("gone"))
    html = qc_html(site, prepare_cohort(site, workers=1))
    assert "COHORT-NO-CASE" in html
    assert "Fig. 1" not in html


def test_table_1_counts_a_patient_once() -> None:
    entries = [
        entry("a", "p1", 40, "F"),
        entry("b", "p1", 41, "F"),
        entry("c", "p2", 60, "M"),
        entry("d", "p3", None, None),
    ]
    covid, cap, everybody = demographics(entries)
    assert (covid.n_images, covid.age_median, covid.age_range) == (0, None, None)
    assert cap == replace(everybody, name="CAP")
    assert (cap.n_images, cap.n_patients, cap.n_female, cap.n_male) == (4, 3, 1, 1)
    assert (cap.age_median, cap.age_range) == (50, (40, 60))  # the first scan of a patient counts


def test_figure_1_counts_cases_and_has_both_thresholds() -> None:
    ratios = (0.0, 5e-5, 0.002, 0.002, 0.9, 1.0)
    svg = ratio_histogram_svg([case(Label.COVID, ratio) for ratio in ratios] + [case(Label.CAP, 0.002)])
    assert re.findall(r"<title>(.*?)</title>", svg) == [
        "COVID-19: 2 cases from 0 to 0.0001",
        "COVID-19: 2 cases from 0.001585 to 0.002512",
        "COVID-19: 2 cases from 0.631 to 1",
        "CAP: 1 cases from 0.001585 to 0.002512",
    ]
    assert "CAP large above 0.001" in svg
    assert "COVID-19 small below 0.030" in svg


def test_the_histogram_of_hu_has_its_highest_bar_at_aerated_lung() -> None:
    shares = [0.0] * 52
    shares[10] = 1.0
    heights = [
        float(height) for height in re.findall(r'<rect [^>]*height="([0-9.]+)"', hu_histogram_svg(shares))
    ]
    assert len(heights) == 52
    assert heights.index(max(heights)) == 10


def test_a_case_whose_file_cannot_even_be_digested_has_a_row(
    cohort_factory: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "c0.mhd").write_text("ObjectType = Image\nNDims = 3\nElementDataFile = /etc/passwd\n")
    line = cohort_factory.line("c0", image="c0.mhd", lung_mask="", infection_mask="")
    settings = '[segmentation]\nlungs = "classical"\ninfection = "crude"\n'
    site = cohort_factory.write_site(tmp_path, line, settings=settings)
    (row,) = case_rows(prepare_cohort(site, workers=1))
    assert (row.case_id, row.verdict) == ("c0", "left out")
