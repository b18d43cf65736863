"""What the installed distribution looks like from outside."""

from importlib.metadata import packages_distributions

import pytest


@pytest.mark.parametrize("name", ["client", "server", "simulation", "dsan_model", "dsan_daemon"])
def test_no_other_distribution_owns_our_top_level_names(name: str) -> None:
    assert set(packages_distributions().get(name, [])) <= {"dsan-federated"}
