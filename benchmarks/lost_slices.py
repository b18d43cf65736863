"""Which losses of pixels the comparison of neighbouring slices notices, on real scans.

    python benchmarks/lost_slices.py CT_FOLDER

Each scan below CT_FOLDER (folders of DICOM, NIfTI, NRRD, MetaImage) is read and then spoilt in several ways;
printed is the code that it is refused with, or "passes".
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from client.findings import FindingError
from client.images import read_ct
from client.slice_continuity import continuity_findings

Array = npt.NDArray[np.generic]
SUFFIXES = (".nii", ".gz", ".nrrd", ".mha", ".mhd")
ANY_THICKNESS_MM = 50.0


def main() -> None:
    """Print a table for each scan."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="CT_FOLDER")
    for path in scans(parser.parse_args().folder):
        try:
            ct, _ = read_ct(path, None, ANY_THICKNESS_MM)
        except FindingError as error:
            print(f"{path.name}: {error.finding.code}")
            continue
        print(f"{path.name}: {ct.GetSize()} voxels, slices {ct.GetSpacing()[2]:g} mm apart")
        for name, change in CHANGES.items():
            print(f"  {name:<34} {verdict(ct, change)}")


def scans(folder: Path) -> Iterator[Path]:
    """Files of images, and folders of DICOM."""
    for path in sorted(folder.rglob("*")):
        is_series = path.is_dir() and any(path.glob("*.dcm"))
        if is_series or (path.is_file() and path.suffix in SUFFIXES):
            yield path


def verdict(ct: sitk.Image, change: Callable[[Array], Array]) -> str:
    """The code that the spoilt scan is refused with."""
    spoilt = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(ct)))
    spoilt.SetSpacing(ct.GetSpacing())
    spoilt.SetDirection(ct.GetDirection())
    found = continuity_findings(spoilt)
    return found[0].code if found else "passes"


def lost(n_slices: int, share: int) -> Callable[[Array], Array]:
    """Slices in the middle that lost a part of their rows, in the middle."""

    def change(hu_DHW: Array) -> Array:
        first, centre, half = len(hu_DHW) // 2, hu_DHW.shape[1] // 2, hu_DHW.shape[1] // (2 * share)
        hu_DHW[first : first + n_slices, centre - half : centre + half] = -1024
        return hu_DHW

    return change


def swapped(hu_DHW: Array) -> Array:
    """Two neighbours in the middle."""
    middle = len(hu_DHW) // 2
    hu_DHW[[middle, middle + 1]] = hu_DHW[[middle + 1, middle]]
    return hu_DHW


CHANGES: dict[str, Callable[[Array], Array]] = {
    "nothing": lambda hu: hu,
    "pixels in a random order of slices": lambda hu: np.random.default_rng(0).permutation(hu),
    "both halves swapped": lambda hu: np.roll(hu, len(hu) // 2, axis=0),
    "two neighbours swapped": swapped,
    "ten slices missing": lambda hu: np.delete(hu, slice(len(hu) // 2, len(hu) // 2 + 10), axis=0),
    **{
        f"1/{share} of {'a slice' if n == 1 else f'{n} slices'} lost": lost(n, share)
        for n in (1, 10)
        for share in (1, 2, 4, 8)
    },
}

if __name__ == "__main__":
    main()
