"""The factories beside the tests, as fixtures."""

from types import ModuleType

import cohort_factory as cohorts
import dicom_factory as dicom
import pytest


@pytest.fixture
def dicom_factory() -> ModuleType:
    """Generators of good and bad DICOM series."""
    return dicom


@pytest.fixture
def cohort_factory() -> ModuleType:
    """Small hospitals on disk, and model packages to go with them."""
    return cohorts
