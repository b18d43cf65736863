"""Flower's own stores of tasks: a claim lasts long enough to load Python, a heartbeat as long as before."""

from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import TaskType
from flwr.supercore.corestate import in_memory_corestate, sql_corestate
from flwr.supercore.date import now
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from dsan_daemon.task_claims import HEARTBEAT_S, START_S, MissingNameError, give_processes_time_to_start

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # Flower's migrations
STORES = (in_memory_corestate, sql_corestate)


@pytest.fixture(autouse=True)
def _as_flower_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names of both modules are put back after each test."""
    for store in STORES:
        for name in ("HEARTBEAT_DEFAULT_INTERVAL", "HEARTBEAT_PATIENCE"):
            monkeypatch.setattr(store, name, getattr(store, name))


def in_memory(folder: Path) -> Any:
    """As a SuperNode has it."""
    return InMemoryNodeState(ObjectStoreFactory().store())


def in_sqlite(folder: Path) -> Any:
    """As the SuperLink has it."""
    database, objects = str(folder / "superlink.db"), ObjectStoreFactory().store()
    store = SqlLinkState(database, NoOpFederationManager(), objects)
    store.initialize()
    return store


KINDS = pytest.mark.parametrize(
    ("opened", "module"), [(in_memory, in_memory_corestate), (in_sqlite, sql_corestate)]
)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let so many seconds pass for a store."""

    def pass_by(module: ModuleType, seconds: float) -> None:
        monkeypatch.setattr(module, "now", lambda: now() + timedelta(seconds=seconds))

    return pass_by


@KINDS
def test_a_process_that_loads_for_two_minutes_still_has_its_task(
    opened: Any, module: ModuleType, later: Any, tmp_path: Path
) -> None:
    give_processes_time_to_start()
    store = opened(tmp_path)
    task = store.create_task(TaskType.CLIENT_APP, 1)
    token = store.claim_task(task)
    later(module, START_S - 5)
    assert store.get_task_by_token(token).task_id == task
    later(module, START_S + 5)
    assert store.get_task_by_token(token) is None


@KINDS
def test_a_process_that_ran_and_is_silent_is_given_up_as_soon_as_before(
    opened: Any, module: ModuleType, later: Any, tmp_path: Path
) -> None:
    give_processes_time_to_start()
    store = opened(tmp_path)
    task = store.create_task(TaskType.CLIENT_APP, 1)
    token = store.claim_task(task)
    assert store.activate_task(task)
    assert store.acknowledge_task_heartbeat(task)
    later(module, HEARTBEAT_S - 5)
    assert store.get_task_by_token(token).task_id == task
    later(module, HEARTBEAT_S + 5)
    assert store.get_task_by_token(token) is None


def test_another_flower_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql_corestate, "HEARTBEAT_DEFAULT_INTERVAL", 45)
    with pytest.raises(MissingNameError, match="found 45 and 2"):
        give_processes_time_to_start()
