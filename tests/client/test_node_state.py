"""What the SuperNode does is read from Flower's own log, as this release of Flower writes it."""

import logging
from pathlib import Path

import pytest

from client import node_state
from client.node_state import NodeRecorder, NodeState, read_node_state


@pytest.fixture
def loggers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[logging.Logger, logging.Logger, Path]:
    monkeypatch.setattr(node_state, "WRITE_EVERY_S", 0.0)
    recorder = NodeRecorder(tmp_path / "node.json")
    flower, http = logging.Logger("flwr"), logging.Logger("httpx")
    for logger in (flower, http):
        logger.addHandler(recorder)
    return flower, http, tmp_path / "node.json"


def state(path: Path) -> NodeState:
    found = read_node_state(path)
    assert found is not None
    return found


def answered(http: logging.Logger, status: int) -> None:
    http.info('HTTP Request: %s %s "%s %d %s"', "POST", "https://centre/v1/fleet/", "HTTP/1.1", status, "OK")


def test_a_message_is_followed_from_taking_to_sending(
    loggers: tuple[logging.Logger, logging.Logger, Path],
) -> None:
    flower, _, path = loggers
    flower.info("SuperNode ID: %s", 17)
    assert (state(path).node_id, state(path).taken) == (17, None)
    flower.info("Receiving: %s message (ID: %s)", "train.round", "abc")
    assert (state(path).message_kind, state(path).message_id) == ("train.round", "abc")
    assert state(path).taken is not None
    flower.info("Sending: %s message (ID: %s)", "train.round", "def")
    assert state(path).sending is not None
    flower.info("Sent successfully")
    assert (state(path).taken, state(path).sending, state(path).answered) == (None, None, 1)


def test_a_piece_of_an_answer_that_the_centre_took_is_told_from_a_sign_of_life(
    loggers: tuple[logging.Logger, logging.Logger, Path],
) -> None:
    _, http, path = loggers
    answered(http, 200)
    assert (state(path).contact is not None, state(path).pushed) == (True, None)
    url = "https://centre/v1/fleet/push-object"
    http.info('HTTP Request: %s %s "%s %d %s"', "POST", url, "HTTP/1.1", 200, "OK")
    assert state(path).pushed == state(path).contact


@pytest.mark.parametrize("template", node_state.GIVEN_UP)
def test_a_message_that_flower_gives_up_is_none_any_more(
    loggers: tuple[logging.Logger, logging.Logger, Path], template: str
) -> None:
    flower, _, path = loggers
    flower.info("Receiving: %s message (ID: %s)", "train.round", "abc")
    flower.error(template, *["x"] * template.count("%s"))
    assert state(path).taken is None
    assert state(path).answered == 0


def test_contact_and_refusals_are_those_of_the_newest_answer(
    loggers: tuple[logging.Logger, logging.Logger, Path],
) -> None:
    _, http, path = loggers
    assert state(path).contact is None
    answered(http, 200)
    assert state(path).contact is not None
    assert state(path).http_status is None
    answered(http, 401)
    assert state(path).http_status == 401
    answered(http, 200)
    assert state(path).http_status is None


def test_an_error_is_kept_until_the_node_is_connected(
    loggers: tuple[logging.Logger, logging.Logger, Path],
) -> None:
    flower, _, path = loggers
    flower.error("Exit Code: 305\nFailed to initialize the connection")
    assert "305" in state(path).trouble
    flower.info("SuperNode ID: %s", 17)
    assert state(path).trouble == ""


def test_a_file_that_is_torn_is_no_state(tmp_path: Path) -> None:
    (tmp_path / "node.json").write_text('{"pid": 1')
    assert read_node_state(tmp_path / "node.json") is None


def test_a_disk_that_takes_no_more_does_not_end_the_supernode(
    loggers: tuple[logging.Logger, logging.Logger, Path],
) -> None:
    flower, _, path = loggers
    path.with_suffix(".partial").mkdir()  # nothing can be written there
    flower.info("SuperNode ID: %s", 17)
    path.with_suffix(".partial").rmdir()
    flower.info("Sent successfully")
    assert state(path).node_id == 17
