"""Makes the helpers of these tests importable by name: there are no packages under tests."""

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


_KEYS = _load("site_keys")
_CENTRE = _load("running_centre")
_load("restarting_grid")


@pytest.fixture(scope="session")
def site_keys() -> ModuleType:
    """Keys and requests as a site makes them."""
    return _KEYS


@pytest.fixture(scope="session")
def running_centre() -> ModuleType:
    """A centre's daemon as an operator starts it."""
    return _CENTRE
