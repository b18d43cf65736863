"""The helpers beside the tests, as fixtures."""

from types import ModuleType

import pytest
import running_centre as centre
import site_keys as keys


@pytest.fixture(scope="session")
def site_keys() -> ModuleType:
    """Keys and requests as a site makes them."""
    return keys


@pytest.fixture(scope="session")
def running_centre() -> ModuleType:
    """A centre's daemon as an operator starts it."""
    return centre
