"""Dice of the lungs on one real chest CT against its label map: the classical method, and VB-Net if given.

Command: python benchmarks/real_lungs.py CT_FOLDER [vbnet.safetensors]
CT_FOLDER has cip/ct-64.nrrd and cip/wholeLung-64.nrrd (Chest Imaging Platform). Takes some seconds. Expected:
0.980 for the classical method. One scan says nothing about accuracy.
"""

import sys
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from client.segmentation import segment_lungs
from client.vbnet_masks import segment_by_vbnet
from dsan_model.dice import dice


def main() -> None:
    """Print a line for each method."""
    folder = Path(sys.argv[1]) / "cip"
    ct = sitk.Cast(sitk.ReadImage(str(folder / "ct-64.nrrd")), sitk.sitkInt16)
    reference_DHW = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "wholeLung-64.nrrd"))) > 0
    found = [segment_lungs(ct)]
    if len(sys.argv) > 2:
        found.append(segment_by_vbnet(ct, Path(sys.argv[2]))[0])
    for segmentation in found:
        mask_DHW = sitk.GetArrayFromImage(segmentation.mask).astype(np.bool_)
        sys.stdout.write(f"{segmentation.source:24} {dice(mask_DHW, reference_DHW):.3f}\n")


if __name__ == "__main__":
    main()
