"""What the real bad inputs of ../shared/ct/bad must be refused with, where that folder lies beside us."""

from pathlib import Path

CT = Path(__file__).resolve().parents[3] / "shared" / "ct"
BAD = CT / "bad"
SMALL = BAD / "26_pydicom_small"

FOLDERS = {  # as a folder that a case names
    "01_gantry_tilt_4slices": "DICOM-TILT",
    "02_missing_slice_ct": "DICOM-GAP",
    "07_reformat_coronal_ricord_jpegll": "DICOM-NOT-AXIAL",
    "11_scout_localizer": "DICOM-LOCALIZER",
    "15_git_lfs_pointer": "DICOM-LFS-POINTER",
    "20_transfer_syntaxes_ct": "DICOM-DUPLICATE",
    "22_no_pixel_data": "DICOM-MODALITY",  # a structured report; DICOM-NO-PIXELS comes second
    "23_enhanced_multiframe_ct": "DICOM-MULTIFRAME",
    "26_pydicom_small": "DICOM-NO-PREAMBLE",
    "33_metaimage_oddities": "DICOM-NONE",  # these three hold no DICOM: their files are judged below
    "40_mask_passed_as_ct": "DICOM-NONE",
    "42_abdomen_not_chest": "DICOM-NONE",
}
SMALL_FILES = {  # alone in a folder
    "CT_small.dcm": "DICOM-PIXEL-SPACING",
    "ExplVR_BigEnd.dcm": "DICOM-MODALITY",
    "ExplVR_BigEndNoMeta.dcm": "DICOM-NO-PREAMBLE",
    "J2K_pixelrep_mismatch.dcm": "DICOM-NOT-AXIAL",
    "JPEG2000-embedded-sequence-delimiter.dcm": "DICOM-MODALITY",
    "MR_truncated.dcm": "DICOM-MODALITY",
    "SC_rgb_jpeg.dcm": "DICOM-MODALITY",
    "SC_rgb_small_odd.dcm": "DICOM-MODALITY",
    "badVR.dcm": "DICOM-MODALITY",
    "bad_sequence.dcm": "DICOM-FEW-SLICES",
    "empty_charset_LEI.dcm": "DICOM-NO-PIXELS",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "DICOM-MODALITY",
    "examples_palette.dcm": "DICOM-MODALITY",
    "explicit_VR-UN.dcm": "DICOM-FEW-SLICES",
    "image_dfl.dcm": "DICOM-MODALITY",
    "liver_1frame.dcm": "DICOM-MODALITY",
    "meta_missing_tsyntax.dcm": "DICOM-MISSING-TAG",
    "no_meta.dcm": "DICOM-NOT-DICOM",
    "rtdose.dcm": "DICOM-MODALITY",
    "rtplan.dcm": "DICOM-MODALITY",
    "rtplan_truncated.dcm": "DICOM-MODALITY",
    "rtstruct.dcm": "DICOM-NO-PREAMBLE",
    "test-SR.dcm": "DICOM-MODALITY",
}
ODD_METAIMAGES = {
    "image10x10x10-extra-stuff.mhd": "IMAGE-EXTENT",
    "image10x10x10.mhd": "IMAGE-EXTENT",
    "image10x11x12x13-extra-stuff.mhd": "IMAGE-DIMENSION",
    "image10x11x12x13.mha": "IMAGE-DIMENSION",
    "image10x11x12x13.mhd": "IMAGE-DIMENSION",
    "image128x256RGB.mhd": "IMAGE-COLOUR",
    "image128x256x3RGB.mhd": "IMAGE-COLOUR",
    "image128x256x4RGB.mhd": "IMAGE-COLOUR",
    "image3x4-extra-stuff.mhd": "IMAGE-COLOUR",
    "image3x4-no-spacing-with-12-size.mhd": "IMAGE-COLOUR",
    "image3x4-no-spacing.mhd": "IMAGE-SPACING",
    "image3x4-with-12-spacing.mhd": "IMAGE-COLOUR",
    "image3x4.mhd": "IMAGE-COLOUR",
    "image4x4x4x4x4.mha": "IMAGE-DIMENSION",
    "image5x6x7-no-spacing-with-123-size.mhd": "IMAGE-EXTENT",
    "image5x6x7-no-spacing.mhd": "IMAGE-SPACING",
    "image5x6x7-with-123-spacing.mhd": "IMAGE-EXTENT",
    "image5x6x7.mhd": "IMAGE-EXTENT",
    "image_min10_max10.mha": "IMAGE-DIMENSION",
    "invalid_utf8.mhd": "IMAGE-EXTENT",
    "referring_to_system_file.mhd": "IMAGE-DATA-FILE",
}
FILES = {  # as a file that a case names
    **{f"33_metaimage_oddities/{name}": code for name, code in ODD_METAIMAGES.items()},
    "40_mask_passed_as_ct/1.0.000.000000.0.00.0.0000000000.0000.0000000000.000.mhd": "IMAGE-8-BIT",
    "42_abdomen_not_chest/example_ct.nii.gz": "SEG-NO-LUNGS",  # read as it is; there is no lung to segment
}
