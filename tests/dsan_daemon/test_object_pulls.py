"""Flower's own pulling of a message's pieces: soon after they have come, however long their upload takes."""

import time
from collections.abc import Iterator

import pytest
from flwr.supercore.inflatable import inflatable_utils
from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects

from dsan_daemon import object_pulls
from dsan_daemon.object_pulls import look_for_pieces_often
from dsan_daemon.task_claims import MissingNameError


@pytest.fixture(autouse=True)
def _as_flower_has_it() -> Iterator[None]:
    """The defaults are put back after each test."""
    before = dict(pull_objects.__kwdefaults__)
    yield
    pull_objects.__kwdefaults__.update(before)


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


def test_a_flower_that_pulls_in_another_way_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inflatable_utils, "pull_objects", lambda object_ids, pull_object_fn: {})
    with pytest.raises(MissingNameError, match="backoff_cap, initial_backoff, max_tries_per_object"):
        look_for_pieces_often()
