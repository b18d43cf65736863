"""Makes the factories beside the tests importable by name: there are no packages under tests."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def _load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


_FACTORY = _load("dicom_factory")
_COHORTS = _load("cohort_factory")
for _name in ("image_factory", "table_factory", "package_factory", "shared_bad", "orthanc"):
    _load(_name)


@pytest.fixture
def dicom_factory() -> ModuleType:
    """Generators of good and bad DICOM series."""
    return _FACTORY


@pytest.fixture
def cohort_factory() -> ModuleType:
    """Small hospitals on disk, and model packages to go with them."""
    return _COHORTS
