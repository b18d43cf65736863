"""Where the lung and infection masks of a case come from: its files, or the segmentation that the site chose.

This is the one place that decides it. Every source has a name with a version, which is kept with the stored
volume, because ratios of different segmenters are not comparable.
"""

from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk

from client import segmentation
from client.cohort import CohortCase
from client.findings import Finding, FindingError
from client.images import check_masks, read_mask
from client.infection_audit import audit_infection
from client.lung_audit import audit_lungs
from client.lungmask_segmenter import lungmask_name, segment_with_lungmask
from client.mask_names import GIVEN, MaskNames
from client.segmentation import Segmentation, estimate_infection, segment_lungs
from client.site import SegmentationTable
from client.vbnet_masks import segment_by_vbnet, vbnet_name

VBNET, LUNGMASK = "vbnet", "lungmask"


@dataclass(frozen=True)
class CaseMasks:
    """Both masks on the scan's voxel grid: uint8, 0 and 1."""

    lung: sitk.Image
    infection: sitk.Image
    findings: tuple[Finding, ...]  # warnings


@dataclass(frozen=True)
class MaskSource:
    """What a case's masks are made from, before the scan is read: part of the key of its stored volume."""

    lung_file: Path | None  # None: segmented
    infection_file: Path | None  # None: segmented
    names: MaskNames
    chosen: SegmentationTable  # what segments where there is no file

    @property
    def files(self) -> tuple[Path, ...]:
        """The mask files that are read."""
        return tuple(file for file in (self.lung_file, self.infection_file) if file is not None)


def mask_source(case: CohortCase, chosen: SegmentationTable) -> MaskSource:
    """How the masks of this case will be had. Raises FindingError IMAGE-NO-MASK if they cannot."""
    if case.lung_mask is None and chosen.lungs == GIVEN:
        raise _no_mask(case, "lung_mask", 'lungs = "classical"')
    if case.infection_mask is None and chosen.infection == GIVEN:
        raise _no_mask(case, "infection_mask", 'infection = "crude"')
    names = names_without_files(chosen)
    return MaskSource(
        case.lung_mask,
        case.infection_mask,
        MaskNames(
            GIVEN if case.lung_mask else names.lungs, GIVEN if case.infection_mask else names.infection
        ),
        chosen,
    )


def names_without_files(chosen: SegmentationTable) -> MaskNames:
    """What makes the masks of a case that names none. FindingError VBNET- or SEG- for weights that lack."""
    lungmask = lungmask_name(Path(chosen.lungmask_weights)) if chosen.lungs == LUNGMASK else LUNGMASK
    uses_vbnet = VBNET in (chosen.lungs, chosen.infection)
    if uses_vbnet and not chosen.weights:
        fix = "Set weights under [segmentation] in site.toml to the file of VB-Net's weights."
        raise FindingError(Finding("VBNET-MISSING", "error", "site.toml", "weights is not set", fix))
    vbnet = vbnet_name(Path(chosen.weights)) if uses_vbnet else VBNET
    names = {GIVEN: GIVEN, "classical": segmentation.LUNGS, "crude": segmentation.INFECTION, VBNET: vbnet}
    return MaskNames((names | {LUNGMASK: lungmask})[chosen.lungs], names[chosen.infection])


def case_masks(case: CohortCase, source: MaskSource, ct: sitk.Image) -> CaseMasks:
    """The masks of one case on the grid of its scan. Raises FindingError with an IMAGE- or SEG- code."""
    files = (source.lung_file, source.infection_file)
    lung, infection = both_masks(*files, source.chosen, ct, case.case_id)
    findings = check_masks(lung.mask, infection.mask, case.case_id)
    of_fit = audit_fit(ct, lung, infection, case.case_id)
    return CaseMasks(lung.mask, infection.mask, (*lung.findings, *infection.findings, *findings, *of_fit))


def both_masks(
    lung_file: Path | None,
    infection_file: Path | None,
    chosen: SegmentationTable,
    ct: sitk.Image,
    case_id: str | None = None,
) -> tuple[Segmentation, Segmentation]:
    """Lungs and infection on the grid of a scan: each from its file, or by the method chosen without one.

    VB-Net makes both in one pass, and none if both are given. Raises FindingError with an IMAGE-, SEG- or
    VBNET- code.
    """
    makes_lungs = chosen.lungs if lung_file is None else GIVEN
    makes_infection = chosen.infection if infection_file is None else GIVEN
    if VBNET in (makes_lungs, makes_infection):
        vbnet_lung, vbnet_infection = segment_by_vbnet(ct, Path(chosen.weights), case_id)
    if lung_file is not None:
        lung = _given(lung_file, ct, case_id, "lung mask")
    elif makes_lungs == VBNET:
        lung = vbnet_lung
    elif makes_lungs == LUNGMASK:
        lung = segment_with_lungmask(ct, Path(chosen.lungmask_weights), case_id)
    else:
        lung = segment_lungs(ct, case_id)
    if infection_file is not None:
        return lung, _given(infection_file, ct, case_id, "infection mask")
    return lung, vbnet_infection if makes_infection == VBNET else estimate_infection(ct, lung.mask, case_id)


def audit_fit(
    ct: sitk.Image, lung: Segmentation, infection: Segmentation, case_id: str | None
) -> tuple[Finding, ...]:
    """Warnings about masks that do not fit their scan; FindingError for what cannot be its lungs.

    The classical lungs were audited when they were made.
    """
    is_audited = lung.source == segmentation.LUNGS
    of_lung = audit_lungs(ct, lung.mask, lung.source, case_id) if not is_audited else ()
    if infection.source != GIVEN:
        return of_lung
    return (*of_lung, *audit_infection(ct, lung.mask, infection.mask, infection.file, case_id))


def _given(file: Path, ct: sitk.Image, case_id: str | None, role: str) -> Segmentation:
    return Segmentation(read_mask(file, ct, case_id, role), GIVEN, (), file)


def _no_mask(case: CohortCase, column: str, setting: str) -> FindingError:
    where = f"cohort.csv line {case.line}, column {column}"
    fix = f"Segment the scan and name the file there, or set {setting} under [segmentation] in site.toml."
    return FindingError(Finding("IMAGE-NO-MASK", "error", where, "no mask is given", fix, case.case_id))
