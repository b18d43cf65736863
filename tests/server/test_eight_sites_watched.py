"""Eight sites at once on a real centre: TLS through nginx, real clocks, a silent site, and restarts."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from debian_programs import debian_program

from client.site_watch import SiteWatchClient, WatchCredentials
from dsan_model.watch_pb2 import SiteStatus
from server.admittance import enrol_site
from server.status import centre_status
from server.watch_file import read_watch

NAMES = tuple(f"hospital-{number}" for number in range(1, 9))
SEEN_S, NAMED_S, BACK_S = 15.0, 90.0, 60.0


class Site:
    """The watching end of one hospital's daemon."""

    def __init__(self, folder: Path, name: str, address: str) -> None:
        self.name = name
        self.status = SiteStatus(study="eight", round=1, branch="us", phase="training", steps=100)
        self.speaks = threading.Event()
        self.speaks.set()
        files = WatchCredentials(
            *(folder / f"{name}-{file}" for file in ("ca.crt", "watch.crt", "watch.key"))
        )
        self.watch = SiteWatchClient(address, files, name, self._status, lambda order: None)

    def _status(self) -> SiteStatus:
        self.speaks.wait()
        return self.status


@pytest.fixture
def running(running_centre: ModuleType, tmp_path: Path) -> Iterator[Any]:
    debian_program("nginx")
    running = running_centre.RunningCentre(tmp_path / "centre")
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture
def sites(running: Any, site_keys: ModuleType, tmp_path: Path) -> Iterator[list[Site]]:
    for name in NAMES:
        keys = site_keys.make_keys()
        enrol_site(running.centre, running.config, site_keys.write_request(tmp_path, name, keys))
        kit = json.loads(running.centre.kit(name).read_text())
        (tmp_path / f"{name}-ca.crt").write_text(kit["ca_certificate"])
        (tmp_path / f"{name}-watch.crt").write_text(kit["client_certificate"])
        (tmp_path / f"{name}-watch.key").write_bytes(site_keys.private_pem(keys.watch))
    sites = [Site(tmp_path, name, running.address) for name in NAMES]
    for site in sites:
        site.watch.start()
    yield sites
    for site in sites:
        site.speaks.set()
        site.watch.stop()


def seconds_until(happened: Callable[[], object], at_most: float) -> float:
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < at_most
        time.sleep(0.1)
    return time.monotonic() - began


def are_connected(running: Any) -> bool:
    watched = read_watch(running.centre.state)
    return all(name in watched and watched[name].connected for name in NAMES)


def late(running: Any) -> dict[str, str]:
    return {site.name: site.late for site in centre_status(running.centre.folder).sites if site.late}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_eight_sites_are_seen_a_silent_one_is_named_and_all_come_back_after_restarts(
    running: Any, sites: list[Site]
) -> None:
    seconds_until(lambda: are_connected(running), BACK_S)
    for step in (10, 60):
        for site in sites:
            site.status.done = step
        seen_s = seconds_until(
            lambda step=step: all(  # type: ignore[misc]
                known.status.done == step for known in read_watch(running.centre.state).values()
            ),
            SEEN_S,
        )
        print(f"progress of eight sites seen after {seen_s:.1f} s")

    silent = sites[2]
    silent.speaks.clear()  # its connection stands, and it says nothing: it hangs
    named_s = seconds_until(lambda: silent.name in late(running), NAMED_S)
    assert "silent" in late(running)[silent.name]
    assert set(late(running)) == {silent.name}
    print(f"the silent site named after {named_s:.1f} s: {late(running)[silent.name]}")
    silent.speaks.set()
    seconds_until(lambda: are_connected(running), BACK_S)

    for end in (running.stop, running.kill):  # SIGTERM, and SIGKILL of the daemon
        end()
        running.start()
        running.wait_until_ready()
        back_s = seconds_until(lambda: are_connected(running), BACK_S)
        print(f"all eight back {back_s:.1f} s after the centre was ready again")
    assert late(running) == {}
