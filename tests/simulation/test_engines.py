"""Three engines, the same two apps, the same weights; and what the in-process Grid owes to Flower 1.41."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from small_study import Simulate, copied, model_bytes, study_arguments

from simulation.engines import InProcessGrid


def echo_app() -> ClientApp:
    app = ClientApp()

    @app.query("echo")
    def echo(message: Message, context: Context) -> Message:
        said = message.content.config_records["said"]["text"]
        if said == "raise":
            raise ValueError("secret of the site")
        named = ConfigRecord({"text": f"{said} {context.node_config['site-config']}"})
        return Message(RecordDict({"said": named}), reply_to=message)

    return app


def ask(grid: Grid, node: int, text: str) -> Message:
    content = RecordDict({"said": ConfigRecord({"text": text})})
    (identifier,) = grid.push_messages([Message(content, node, "query.echo")])
    while not (replies := list(grid.pull_messages([identifier]))):
        pass
    return replies[0]


@pytest.fixture
def grid():
    with ThreadPoolExecutor(2) as pool:
        yield InProcessGrid(echo_app(), (Path("a.toml"), Path("b.toml")), pool)


def test_a_reply_comes_from_the_node_that_was_asked(grid: InProcessGrid) -> None:
    assert ask(grid, 2, "hello").content.config_records["said"]["text"] == "hello b.toml"


def test_a_reply_names_the_message_that_it_answers(grid: InProcessGrid) -> None:
    (identifier,) = grid.push_messages(
        [Message(RecordDict({"said": ConfigRecord({"text": "x"})}), 1, "query.echo")]
    )
    (reply,) = grid.send_and_receive([]) or [None]
    while not (replies := list(grid.pull_messages([identifier]))):
        pass
    assert replies[0].metadata.reply_to_message_id == identifier
    assert list(grid.pull_messages([identifier])) == []
    assert reply is None


def test_an_exception_of_the_app_is_an_error_reply(grid: InProcessGrid) -> None:
    assert ask(grid, 1, "raise").has_error()


def test_an_unknown_node_gets_an_empty_identifier(grid: InProcessGrid) -> None:
    assert list(grid.push_messages([Message(RecordDict(), 9, "query.echo")])) == [""]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "deployment"])
def test_engine_ends_with_the_weights_of_the_in_process_one(
    engine: str, finished: Path, hospitals: Path, tmp_path: Path, simulate: Simulate
) -> None:
    arguments = study_arguments(copied(hospitals, tmp_path / "hospitals"), tmp_path / engine)
    assert simulate("run", *arguments, "--engine", engine) == 0
    assert model_bytes(tmp_path / engine) == model_bytes(finished)
