"""A hospital's daemon and a real SuperLink: it answers for the code that it installed, and for no other."""

import hashlib
import io
import os
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from small_study import copied

from client.clientapp_program import ClientAppRecord, is_clientapp_alive, read_record
from client.daemon_status import Event, read_status, status_text
from client.egress import read_egress
from client.preparation import prepare_cohort
from client.site import SiteConfig, read_site
from dsan_daemon.bundle import build_bundle, bundle_files
from dsan_daemon.flower import flower_environment, flower_program
from dsan_daemon.processes import Program, supervised
from server.ledger import read_ledger
from server.orders import give_order
from server.site_watch import SiteWatchServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
WAIT_S = 400.0
STUDY = """
name = "{name}"
rounds = 1
folds = 2
[input]
shape_dhw = [16, 32, 32]
antialias = true
[network]
blocks = [1, 1, 1, 1]
width = 4
stem_kernel = 3
stem_pool = false
[sites]
training = ["hospital-1"]
"""


def wait_until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.1)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, hospitals: Path) -> SiteConfig:
    home = copied(hospitals / "hospital-1", tmp_path_factory.mktemp("site") / "hospital-1")
    prepare_cohort(read_site(home / "site.toml"), 1)
    return read_site(home / "site.toml")


@pytest.fixture(scope="module")
def centre(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the centre's SiteWatch."""
    return tmp_path_factory.mktemp("centre")


@pytest.fixture(scope="module")
def superlink(centre: Path, site: SiteConfig) -> Iterator[int]:
    """The port of a SuperLink, to which the site's daemon is connected; SiteWatch is beside it."""
    watch = SiteWatchServer("127.0.0.1:0", None, centre)
    watch_port, folder = watch.start(), centre
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = (flower_program("flower-superlink"), "--insecure", "--port", str(port))
    with supervised(folder / "processes.json") as processes:
        processes.start(Program("superlink", command, flower_environment(folder / "flwr"), folder / "log"))
        wait_until(lambda: is_listening(port))
        options = ("--insecure-loopback", f"127.0.0.1:{port}", "--insecure-watch", f"127.0.0.1:{watch_port}")
        command = (sys.executable, "-m", "client.cli", "start", "--config", str(site.home / "site.toml"))
        daemon = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
        try:
            yield port
        finally:
            daemon.terminate()
            daemon.wait(30)
            watch.stop()


def submit(port: int, run: Path, bundle: bytes) -> None:
    """Start the study of a run folder, with this bundle."""
    run.mkdir(parents=True)
    (run / "study.toml").write_text(STUDY.format(name=run.name))
    version = RuntimeVersionHttpInterceptor(component_name="dsan-server")
    client = ControlHttpClient(f"http://127.0.0.1:{port}", interceptors=[version], timeout=30)
    fab = Fab(hashlib.sha256(bundle).hexdigest(), bundle, {})
    settings = user_config_to_proto({"run-dir": str(run)})
    assert client.StartRun(StartRunRequest(fab=fab_to_proto(fab), override_config=settings)).run_id
    client.close()


def events(run: Path) -> list[str]:
    return [str(line["event"]) for line in read_ledger(run)]


def evil_bundle(marker: Path) -> bytes:
    """The centre's own ServerApp, but another ClientApp, and a module that stands in for ours."""
    evil = f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n".encode()
    files = dict(bundle_files())
    files["pyproject.toml"] = files["pyproject.toml"].replace(b"client.app:app", b"evil:app")
    files |= {"evil.py": evil, "client/app.py": evil}
    listed = "\n".join(f"{n},{hashlib.sha256(c).hexdigest()},{8 * len(c)}" for n, c in files.items())
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        for name, content in (files | {".info/CONTENT": listed.encode()}).items():
            bundle.writestr(name, content)
    return archive.getvalue()


def test_a_foreign_bundle_is_refused_with_a_code_on_both_sides(
    superlink: int, site: SiteConfig, tmp_path: Path
) -> None:
    marker, run = tmp_path / "evil-was-here", tmp_path / "foreign"
    submit(superlink, run, evil_bundle(marker))
    wait_until(lambda: [line for line in read_egress(site.state_folder) if line.code == "CODE-BUNDLE"])
    assert "CODE-BUNDLE" in status_text(site)
    assert not list(site.state_folder.rglob("evil.py"))
    assert (site.state_folder / "flwr" / "superexec" / "apps").is_file()
    wait_until(lambda: "CODE-BUNDLE" in (run / "study.log").read_text())


def is_training(site: SiteConfig) -> bool:
    """Whether a ClientApp is alive and a message of a round is in work."""
    status = read_status(site.state_folder)
    is_round = status is not None and status.work.message_kind == "train.round"
    return is_round and is_clientapp_alive(read_record(site.state_folder))


def held_in_training(site: SiteConfig) -> ClientAppRecord:
    """A ClientApp that trains, stopped: this training takes less time than an order needs to arrive."""
    while True:
        wait_until(lambda: is_training(site))
        record = read_record(site.state_folder)
        assert record is not None
        with suppress(ProcessLookupError):
            os.kill(record.pid, signal.SIGSTOP)
            if is_training(site) and read_record(site.state_folder) == record:
                return record
            os.kill(record.pid, signal.SIGCONT)


def test_a_clientapp_ends_by_order_of_the_centre_and_the_study_is_answered_when_it_asks_again(
    superlink: int, centre: Path, site: SiteConfig, tmp_path: Path
) -> None:
    run = tmp_path / "spring"
    submit(superlink, run, build_bundle())
    record = held_in_training(site)
    status = read_status(site.state_folder)
    assert status is not None
    assert Path(f"/proc/{record.pid}/stat").read_text().rpartition(")")[2].split()[1] == str(
        status.processes["fork-server"].pid
    )
    give_order(centre, "hospital-1", "stop", "")
    wait_until(lambda: not is_clientapp_alive(record))
    wait_until(lambda: any("ordered to stop" in event.what for event in events_of(site)))
    wait_until(lambda: {"complete", "paused", "incomplete"} & set(events(run)))
    assert events(run)[-1] == "complete"
    kinds = [line.kind for line in read_egress(site.state_folder) if line.code is None]
    assert [kind for kind in ("describe", "round", "evaluate", "fit_ensemble") if kind not in kinds] == []


def answered(site: SiteConfig, study: str) -> list[str]:
    """Kinds of the messages of a study that the site answered."""
    return [line.kind for line in read_egress(site.state_folder) if (line.study, line.code) == (study, None)]


def is_drained(site: SiteConfig) -> bool:
    status = read_status(site.state_folder)
    return status is not None and status.is_drained


def test_a_drained_site_finishes_its_message_and_the_study_waits_until_the_site_is_told(
    superlink: int, centre: Path, site: SiteConfig, tmp_path: Path
) -> None:
    run = tmp_path / "autumn"
    submit(superlink, run, build_bundle())
    wait_until(lambda: is_training(site))
    give_order(centre, "hospital-1", "drain", "")
    wait_until(lambda: is_drained(site))
    assert answered(site, "autumn") == ["describe", "round"]
    give_order(centre, "hospital-1", "undrain", "")
    wait_until(lambda: {"complete", "paused", "incomplete"} & set(events(run)))
    assert events(run)[-1] == "complete"
    assert answered(site, "autumn").count("round") == 1  # what was finished is not trained again


def events_of(site: SiteConfig) -> tuple[Event, ...]:
    status = read_status(site.state_folder)
    return () if status is None else status.events
