"""Flower's own pulling of a message's pieces: soon after they have come, however long their upload takes."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
    pull_objects,
)

from dsan_daemon import object_pulls
from dsan_daemon.flower import PIECE_BYTES, flower_environment
from dsan_daemon.object_pulls import look_for_pieces_often
from dsan_daemon.task_claims import MissingNameError

PULLS: tuple[Any, ...] = (pull_objects, pull_and_inflate_object_from_tree)


@pytest.fixture(autouse=True)
def _as_flower_has_it() -> Iterator[None]:
    """The defaults are put back after each test."""
    before = {pull: dict(pull.__kwdefaults__) for pull in PULLS}
    yield
    for pull, defaults in before.items():
        pull.__kwdefaults__.update(defaults)


def test_a_piece_is_taken_within_a_second_of_its_coming() -> None:
    began = time.monotonic()

    def there_after_three_seconds(piece: str) -> bytes:
        if time.monotonic() - began < 3.2:  # Flower looks at 1 s, at 3 s and at 7 s
            raise ObjectUnavailableError(piece)
        return b"values"

    look_for_pieces_often()
    assert pull_objects(["a", "b", "c"], there_after_three_seconds) == dict.fromkeys("abc", b"values")
    assert time.monotonic() - began < 3.2 + 1.2 * object_pulls.LONGEST_PAUSE_S + 0.5


def test_a_slow_upload_is_waited_for_as_long_as_flower_does(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0
    monkeypatch.setattr(object_pulls, "SETTINGS", object_pulls.SETTINGS | {"initial_backoff": 0.0})

    def there_in_the_end(piece: str) -> bytes:
        nonlocal tries
        tries += 1
        if tries < 600:  # Flower gives up after 500
            raise ObjectUnavailableError(piece)
        return b"values"

    look_for_pieces_often()
    assert pull_objects(["a"], there_in_the_end) == {"a": b"values"}


def test_a_clientapp_looks_as_often_as_a_supernode() -> None:
    look_for_pieces_often()
    waits = [pull.__kwdefaults__["backoff_cap"] for pull in PULLS]
    assert waits == [object_pulls.LONGEST_PAUSE_S] * 2


def test_a_flower_that_pulls_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflatable_utils, "pull_objects", lambda object_ids, pull_object_fn: {})
    with pytest.raises(MissingNameError, match="backoff_cap, initial_backoff, max_tries_per_object"):
        look_for_pieces_often()


def test_flower_cuts_weights_into_pieces_of_our_size(tmp_path: Path) -> None:
    code = "from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE as size; print(size)"
    found = subprocess.run(
        (sys.executable, "-W", "ignore", "-c", code),
        env=flower_environment(tmp_path),
        capture_output=True,
        check=True,
    )
    assert int(found.stdout) == PIECE_BYTES
