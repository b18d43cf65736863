"""Three engines, the same two apps, the same weights; and what the in-process Grid owes to Flower 1.41."""

import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from small_study import COMMAND, Simulate, copied, model_bytes, results_of

from server.ledger import read_ledger
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


@pytest.fixture(scope="module")
def small_hospitals(tmp_path_factory: pytest.TempPathFactory, simulate: Simulate) -> Path:
    folder = tmp_path_factory.mktemp("engines") / "three"
    options = ("--sites", "3", "--cases", "8", "--preset", "tiny", "--shape", "24", "64", "64")
    assert simulate("hospitals", folder, *options) == 0
    return folder


def run_once(hospitals: Path, folder: Path, engine: str) -> dict[str, bytes]:
    """The weights after one round on an engine, in a process of its own."""
    options = ("--preset", "tiny", "--rounds", "1", "--baseline", "--workers", "2", "--engine", engine)
    at_sites = copied(hospitals, folder / "hospitals")
    command = [*COMMAND, "run", "--hospitals", str(at_sites), "--out", str(folder / "run"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return model_bytes(folder / "run")


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory, small_hospitals: Path) -> dict[str, bytes]:
    return run_once(small_hospitals, tmp_path_factory.mktemp("inprocess"), "inprocess")


@pytest.mark.slow
@pytest.mark.timeout(900)  # a deployment is a dozen processes, on a machine that may be busy
@pytest.mark.parametrize("engine", ["ray", pytest.param("deployment", marks=pytest.mark.long)])
def test_engine_ends_with_the_weights_of_the_in_process_one(
    engine: str, in_process: dict[str, bytes], small_hospitals: Path, tmp_path: Path
) -> None:
    assert run_once(small_hospitals, tmp_path, engine) == in_process


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_deployment_is_resumed_by_the_same_command(
    small_hospitals: Path, tmp_path: Path, number: signal.Signals
) -> None:
    options = ("--preset", "tiny", "--rounds", "2", "--workers", "2", "--engine", "deployment")
    at_sites, out = copied(small_hospitals, tmp_path / "hospitals"), tmp_path / "run"
    command = [*COMMAND, "run", "--hospitals", str(at_sites), "--out", str(out), *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr:
        assert any("round 1/2" in line for line in process.stderr)
        process.send_signal(number)
        assert process.wait() != 0
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert results_of(out)["complete"] is True
    started = [line for line in read_ledger(out) if line.get("event") == "resumed"]
    assert len(started) == 1
