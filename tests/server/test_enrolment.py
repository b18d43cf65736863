"""Who takes part: names, doubles, sites that are late, and sites that come back."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from restarting_grid import RestartingGrid, description

from dsan_model.cases import SizeGroup
from dsan_model.protocol import Refusal, encode
from server import enrolment
from server.enrolment import Enrolled, enrol, take_back
from server.exchange import Exchange
from server.ledger import read_ledger
from server.study import StudyConfig


def client_app() -> ClientApp:
    """A site whose name is that of its folder; a file called refuses.toml makes it refuse."""
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        path = Path(str(context.node_config["site-config"]))
        site = path.parent.name
        if path.stem == "refuses":
            return Message(encode(Refusal(site, "SITE-RECIPE", "prepare again")), reply_to=message)
        return Message(encode(description(site)), reply_to=message)

    return app


class Centre:
    """An exchange with nodes 1, 2, ... at the given paths, SITE/site.toml."""

    def __init__(self, pool: ThreadPoolExecutor, run_folder: Path, paths: tuple[str, ...]) -> None:
        self.grid = RestartingGrid(client_app(), tuple(map(Path, paths)), pool)
        self.exchange = Exchange(self.grid, 20.0, run_folder)
        self.run_folder = run_folder

    def enrol(self, quorum: int = 0, *training: str) -> Enrolled:
        """Enrol for a study with these training sites."""
        self.study = StudyConfig.model_validate(
            {"name": "s", "sites": {"training": training}, "participation": {"quorum": quorum}}
        )
        return enrol(self.exchange, self.study, self.run_folder)

    def again(self) -> "Centre":
        """The centre after a restart: another exchange over the same nodes and run folder."""
        self.exchange = Exchange(self.grid, 20.0, self.run_folder)
        return self


Connect = Callable[..., Centre]


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Connect]:
    monkeypatch.setattr(enrolment, "WAIT_S", 0.5)
    monkeypatch.setattr(enrolment, "TAKE_BACK_S", 2.0)
    with ThreadPoolExecutor(4) as pool:
        yield lambda *paths: Centre(pool, tmp_path, paths)


def codes(enrolled: Enrolled) -> dict[str, str]:
    return {site: failure.code for site, failure in enrolled.failures.items()}


def test_a_study_that_names_nobody_takes_who_is_connected(connect: Connect) -> None:
    centre = connect("north/site.toml", "south/site.toml")
    assert list(centre.enrol().training) == ["north", "south"]
    assert centre.exchange.nodes.by_site == {"north": 1, "south": 2}


def test_a_site_that_is_named_and_absent_is_waited_for_and_comes_in(connect: Connect) -> None:
    centre = connect("north/site.toml", "south/site.toml")
    centre.grid.leave(2)
    threading.Timer(1.0, centre.grid.come_back, (2,)).start()
    assert list(centre.enrol(0, "north", "south").training) == ["north", "south"]


def test_with_a_quorum_a_study_begins_without_a_site_and_takes_it_in_when_it_comes(connect: Connect) -> None:
    centre = connect("north/site.toml", "south/site.toml")
    del centre.grid.activations[2]
    enrolled = centre.enrol(1, "north", "south")
    assert (list(enrolled.training), codes(enrolled)) == (["north"], {"south": "SITE-ABSENT"})
    groups = dict(enrolled.training_groups())
    take_back(centre.exchange, centre.study, enrolled, centre.run_folder)
    assert codes(enrolled) == {"south": "SITE-ABSENT"}
    centre.grid.come_back(2)
    take_back(centre.exchange, centre.study, enrolled, centre.run_folder)
    assert (list(enrolled.training), codes(enrolled)) == (["north", "south"], {})
    assert enrolled.training_groups() == groups  # what SS draws by does not change within a study
    assert [line["message"] for line in read_ledger(centre.run_folder)] == ["south takes part again"]


def revoke(centre_folder: Path, site: str, when: str | None = "2026-11-01T00:00:00Z") -> None:
    (centre_folder / "server.toml").touch()
    (centre_folder / "sites").mkdir(exist_ok=True)
    (centre_folder / "sites" / f"{site}.json").write_text(json.dumps({"revoked_at": when}))


def test_a_site_that_is_revoked_is_not_waited_for_and_leaves_at_the_next_round(
    connect: Connect, tmp_path: Path
) -> None:
    centre = connect("north/site.toml", "south/site.toml")
    revoke(tmp_path, "west")
    centre.run_folder = tmp_path / "runs" / "s"
    centre.run_folder.mkdir(parents=True)
    enrolled = centre.again().enrol(0, "north", "south", "west")
    assert (list(enrolled.training), codes(enrolled)) == (["north", "south"], {"west": "SITE-REVOKED"})
    revoke(tmp_path, "south")
    centre.grid.leave(2)
    take_back(centre.exchange, centre.study, enrolled, centre.run_folder)
    assert codes(enrolled) == {"south": "SITE-REVOKED", "west": "SITE-REVOKED"}
    assert list(enrolled.training) == ["north"]
    revoke(tmp_path, "south", None)  # enrolled again
    centre.grid.come_back(2)
    take_back(centre.exchange, centre.study, enrolled, centre.run_folder)
    assert (list(enrolled.training), codes(enrolled)) == (["north", "south"], {"west": "SITE-REVOKED"})


def test_a_refusal_is_the_reason_of_its_site(connect: Connect) -> None:
    centre = connect("north/site.toml", "south/refuses.toml")
    assert codes(centre.enrol(0, "north", "south")) == {"south": "SITE-RECIPE"}


def test_two_nodes_of_one_name_are_both_left_out(connect: Connect) -> None:
    centre = connect("north/site.toml", "south/site.toml", "north/other.toml")
    enrolled = centre.enrol(0, "north", "south")
    assert (list(enrolled.training), codes(enrolled)) == (["south"], {"north": "SITE-TWICE"})
    assert "north" not in centre.exchange.nodes.by_site


def test_a_node_that_takes_the_name_of_another_site_is_refused_where_keys_are_registered(
    connect: Connect,
) -> None:
    centre = connect("north/site.toml", "north/impostor.toml")
    centre.grid.names = {1: "north", 2: "south"}
    enrolled = centre.enrol(0, "north", "south")
    assert (list(enrolled.training), codes(enrolled)) == (["north"], {"south": "SITE-IMPOSTOR"})
    assert centre.exchange.nodes.by_site == {"north": 1}


def test_a_resumed_study_knows_the_sites_that_it_began_with(connect: Connect) -> None:
    centre = connect("north/site.toml", "south/site.toml")
    began = centre.enrol()
    centre.grid.leave(2)
    resumed = centre.again().enrol()
    assert list(resumed.training) == ["north"]
    assert resumed.required == ["north", "south"]
    assert (
        resumed.training_groups()
        == began.training_groups()
        == {group: 2 * n for group, n in zip(SizeGroup, (5, 5, 10, 0), strict=True)}
    )
