"""The CT scanners of IV-A, each with a protocol of its own."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scanner:
    """A CT scanner with its protocol.

    `orientation` names where the x, y and z index of its images run to, as ITK does: LPS is to the patient's
    left, back and head.
    """

    name: str
    field_of_view_mm_xyz: tuple[
        float, float, float
    ]  # left-right, front-back, feet-head; at most 500, 500, 380
    noise_hu: float
    smoothing_mm: float  # sd of the reconstruction kernel
    orientation: str = "LPS"
    offset_hu: float = 0.0  # error of calibration
    outside_circle_hu: int = -1024  # what it writes outside the circle of reconstruction
    manufacturer: str = ""


# The scanners of IV-A. The last one is the second LightSpeed 16, with a protocol that no other site has.
SCANNERS = (
    Scanner("uCT 780", (350, 350, 300), 16, 0.8, "LPS", 0, -1024, "UIH"),
    Scanner("Optima CT520", (340, 340, 290), 26, 0.7, "RAS", 4, -2000, "GE MEDICAL SYSTEMS"),
    Scanner("Discovery CT750", (360, 360, 300), 20, 1.0, "LAS", -3, -2000, "GE MEDICAL SYSTEMS"),
    Scanner("LightSpeed 16", (330, 330, 295), 30, 0.6, "LPI", -6, -2000, "GE MEDICAL SYSTEMS"),
    Scanner("Aquilion ONE", (345, 345, 305), 18, 1.1, "RAI", 3, -1024, "TOSHIBA"),
    Scanner("SOMATOM Force", (325, 325, 290), 14, 0.9, "LAI", 0, -1024, "SIEMENS"),
    Scanner("SCENARIA", (355, 355, 300), 24, 1.2, "RPS", 6, -1024, "Hitachi Medical Corporation"),
    Scanner("LightSpeed 16", (335, 335, 300), 34, 0.5, "RPI", 8, -2000, "GE MEDICAL SYSTEMS"),
)
