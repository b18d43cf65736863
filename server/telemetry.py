"""Prometheus metrics of the centre (docs/reference/metrics.md), computed from its files at every scrape.

Labels are of a closed set: site, study, branch, phase, code, kind. Nothing here names a case or a path.
"""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dsan_model.watch import BRANCHES, PHASES
from server.expiry import Ending
from server.ledger import read_ledger
from server.round_files import read_rounds, read_validation, validation_score
from server.status import CentreStatus, RunStatus, SiteInRun, centre_status, shown_folder

RUN_STATES = (
    *("waiting", "running", "paused", "stopped", "interrupted"),
    *("incomplete", "complete", "unreadable"),
)
SITE_KINDS = ("connected", "away", "never-heard")
MOST_SITES, MOST_CODES = 256, 64  # what one scrape may have of each; a hostile site invents no further ones


def centre_registry(folder: Path) -> CollectorRegistry:
    """A registry whose scrape reads the centre's folder."""
    registry = CollectorRegistry()
    registry.register(CentreCollector(folder))
    return registry


class CentreCollector(Collector):
    """The metrics of the centre's newest run, its sites, certificates and disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> list[Metric]:
        """Nothing: a registry would otherwise scrape once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric as of now."""
        status = centre_status(self._folder)
        yield _gauge("dsan_site_watch_up", "Whether SiteWatch keeps its file.", float(status.is_watching))
        yield from _sites(status)
        if status.run is not None:
            run_folder = shown_folder(self._folder, status.run)
            yield from _run(status.run, status.now)
            yield from _ledger(status.run, run_folder)
            yield _validation(status.run, run_folder)
        yield from _machine(self._folder)
        yield from _certificates(status.certificates)


def _run(run: RunStatus, now: float) -> Iterator[Metric]:
    study = {"study": run.study}
    phase = GaugeMetricFamily(
        "dsan_study_phase", "1 for the state that the newest run is in.", labels=["study", "phase"]
    )
    for name in RUN_STATES:
        phase.add_metric([run.study, name], float(name == run.state))
    yield phase
    yield _gauge("dsan_study_round", "The round in work, or the last finished one.", run.round, study)
    yield _gauge("dsan_study_rounds", "Rounds of the study.", run.rounds, study)
    if run.changed is not None:
        age = now - run.changed
        yield _gauge("dsan_study_unchanged_seconds", "Since the last line of the ledger.", age, study)
    if run.round_began is not None and run.round_deadline is not None:
        yield _gauge("dsan_round_age_seconds", "Since the round in work began.", now - run.round_began, study)
        left = run.round_deadline - now
        yield _gauge("dsan_round_deadline_seconds", "Until its deadline; below 0: it is over.", left, study)
    if run.round_seconds is not None:
        yield _gauge(
            "dsan_round_duration_seconds", "How long the last finished round took.", run.round_seconds, study
        )


def _sites(status: CentreStatus) -> Iterator[Metric]:
    kinds = Counter(_kind(site) for site in status.sites)
    count = GaugeMetricFamily(
        "dsan_sites", "Sites that are connected, away, never heard of.", labels=["kind"]
    )
    for kind in SITE_KINDS:
        count.add_metric([kind], kinds[kind])
    yield count
    values: dict[str, tuple[str, dict[str, float]]] = {
        "dsan_site_connected": ("Whether the site's stream stands.", {}),
        "dsan_site_late": ("Whether `dsan-server status` names the site as late.", {}),
        "dsan_site_last_contact_age_seconds": ("Since the site was heard.", {}),
        "dsan_site_steps_done": ("Steps of its phase that are done, as it says.", {}),
        "dsan_site_steps": ("Steps of its phase.", {}),
        "dsan_site_eta_seconds": ("Until its phase ends, as it reckons.", {}),
        "dsan_site_disk_free_bytes": ("Free disk at the site, as it says.", {}),
        "dsan_site_clock_ahead_seconds": ("Its clock over ours; Flower refuses 5 s.", {}),
    }
    phases = GaugeMetricFamily(
        "dsan_site_phase", "1 for the phase that the site is in.", labels=["site", "phase"]
    )
    for site in status.sites[:MOST_SITES]:
        for name, value in _of_site(site, status.now).items():
            values[name][1][site.name] = value
        for phase in PHASES if site.is_connected else ():
            phases.add_metric([site.name, phase], float(site.report.phase == phase))
    for name, (text, by_site) in values.items():
        gauge = GaugeMetricFamily(name, text, labels=["site"])
        for site_name, value in by_site.items():
            gauge.add_metric([site_name], value)
        yield gauge
    yield phases


def _of_site(site: SiteInRun, now: float) -> dict[str, float]:
    found = {
        "dsan_site_connected": float(site.is_connected),
        "dsan_site_late": float(bool(site.late) and site.role != "enrolled"),
    }
    age = site.last_contact_age_s(now)
    if age is not None:
        found["dsan_site_last_contact_age_seconds"] = age
    if site.is_connected and site.known is not None:
        report = site.report
        found |= {
            "dsan_site_steps_done": report.done,
            "dsan_site_steps": report.steps,
            "dsan_site_eta_seconds": report.eta_s,
            "dsan_site_clock_ahead_seconds": site.known.clock_ahead_s,
        }
        if report.disk_free_bytes:
            found["dsan_site_disk_free_bytes"] = report.disk_free_bytes
    return found


def _kind(site: SiteInRun) -> str:
    if site.known is None:
        return "never-heard"
    return "connected" if site.known.connected else "away"


def _ledger(run: RunStatus, run_folder: Path) -> Iterator[Metric]:
    """What came of every asked update, each site, branch and round counted once, by its last word."""
    last = {
        (line["round"], line["site"], line["branch"]): (str(line["status"]), str(line.get("code") or ""))
        for line in read_ledger(run_folder)
        if line.get("event") == "round"
    }
    codes = {
        status: Counter(code for found, code in last.values() if found == status)
        for status in ("accepted", "rejected", "missing")
    }
    accepted = CounterMetricFamily("dsan_updates_accepted", "Updates averaged.", labels=["study"])
    accepted.add_metric([run.study], codes["accepted"].total())
    yield accepted
    for status, text in (
        ("rejected", "Updates not averaged, by code."),
        ("missing", "Updates that never came."),
    ):
        counter = CounterMetricFamily(f"dsan_updates_{status}", text, labels=["study", "code"])
        for code, n in sorted(codes[status].items())[:MOST_CODES]:
            counter.add_metric([run.study, code], n)
        yield counter
    rounds = read_rounds(run_folder)
    sent, received = sum(r.bytes_to_sites for r in rounds), sum(r.bytes_from_sites for r in rounds)
    for way, n_bytes in (("to", sent), ("from", received)):
        counter = CounterMetricFamily(
            f"dsan_bytes_{way}_sites", f"Bytes {way} the sites in finished rounds.", labels=["study"]
        )
        counter.add_metric([run.study], n_bytes)
        yield counter


def _validation(run: RunStatus, run_folder: Path) -> Metric:
    gauge = GaugeMetricFamily(
        "dsan_validation_score",
        "Pooled AUC, of VB-Net the mean Dice, of the newest validated weights.",
        labels=["study", "branch"],
    )
    _, counts = next(read_validation(run_folder, newest_first=True), (0, {}))
    for branch in BRANCHES:
        found = validation_score(counts, branch)
        if found is not None:
            gauge.add_metric([run.study, branch], found)
    return gauge


def _machine(folder: Path) -> Iterator[Metric]:
    disk = shutil.disk_usage(folder)
    yield _gauge("dsan_disk_free_bytes", "Free disk where the centre's folder lies.", disk.free)
    yield _gauge("dsan_disk_size_bytes", "Size of that disk.", disk.total)


def _certificates(certificates: tuple[Ending, ...]) -> Iterator[Metric]:
    own = GaugeMetricFamily(
        "dsan_certificate_expiry_timestamp_seconds", "When a certificate, or the CRL, ends.", labels=["kind"]
    )
    of_sites = GaugeMetricFamily(
        "dsan_site_certificate_expiry_timestamp_seconds", "When a site's certificate ends.", labels=["site"]
    )
    for ending in certificates:
        if ending.kind == "site":
            of_sites.add_metric([ending.site], ending.ends)
        else:
            own.add_metric([ending.kind], ending.ends)
    yield own
    yield of_sites


def _gauge(name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    gauge = GaugeMetricFamily(name, text, labels=list(labels or {}))
    gauge.add_metric(list((labels or {}).values()), value)
    return gauge
