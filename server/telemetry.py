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
from server.status import (
    RUN_STATES,
    UNFINISHED,
    CentreStatus,
    RunStatus,
    SiteInRun,
    centre_status,
    shown_folder,
)

SITE_KINDS = ("connected", "away", "never-heard")
MOST_SITES, MOST_CODES = 256, 64  # what one scrape may have of each; a hostile site invents no further ones
MOST_RUNS = 16  # the newest; more at a time are hardly run on one centre


def centre_registry(folder: Path) -> CollectorRegistry:
    """A registry whose scrape reads the centre's folder."""
    registry = CollectorRegistry()
    registry.register(CentreCollector(folder))
    return registry


class CentreCollector(Collector):
    """The metrics of the centre's runs that are not at their end, its sites, certificates and disk.

    The run that `dsan-server status` shows is always among them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def describe(self) -> list[Metric]:
        """Nothing: a registry would otherwise scrape once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric as of now."""
        status = centre_status(self._folder)
        unfinished = [name for name, state in status.others if state in UNFINISHED]
        others = [centre_status(self._folder, name) for name in unfinished]
        others.sort(key=lambda other: other.run.changed or 0.0 if other.run else 0.0, reverse=True)
        all_of_them = [status, *others[: MOST_RUNS - 1]]
        yield _gauge("dsan_site_watch_up", "Whether SiteWatch keeps its file.", float(status.is_watching))
        yield from _sites(_merged(all_of_them), status.now)
        runs = [(of.run, shown_folder(self._folder, of.run)) for of in all_of_them if of.run is not None]
        yield from _runs([run for run, _ in runs], status.now)
        yield from _ledgers(runs)
        yield _validation(runs)
        yield from _machine(self._folder)
        yield from _certificates(status.certificates)


def _merged(found: list[CentreStatus]) -> list[tuple[SiteInRun, bool]]:
    """Every site once, and whether a run that is not at its end waits for a look at it."""
    sites: dict[str, SiteInRun] = {}
    late: set[str] = set()
    for status in found:
        is_open = status.run is not None and status.run.state in UNFINISHED
        for site in status.sites:
            sites.setdefault(site.name, site)
            if is_open and site.late and site.role != "enrolled":
                late.add(site.name)
    return [(site, name in late) for name, site in sites.items()]


def _runs(runs: list[RunStatus], now: float) -> Iterator[Metric]:
    phase = GaugeMetricFamily(
        "dsan_study_phase", "1 for the state that the study is in.", labels=["study", "phase"]
    )
    values: dict[str, tuple[str, dict[str, float]]] = {
        "dsan_study_round": ("The round in work, or the last one that was.", {}),
        "dsan_study_rounds": ("Rounds of the study.", {}),
        "dsan_study_unchanged_seconds": ("Since the last line of the ledger.", {}),
        "dsan_round_age_seconds": ("Since the round in work began.", {}),
        "dsan_round_deadline_seconds": ("Until its deadline; below 0: it is over.", {}),
        "dsan_round_duration_seconds": ("How long the last finished round took.", {}),
    }
    for run in runs:
        for name in RUN_STATES:
            phase.add_metric([run.study, name], float(name == run.state))
        for metric, value in _of_run(run, now).items():
            values[metric][1][run.study] = value
    yield phase
    yield from _gauges(values, "study")


def _of_run(run: RunStatus, now: float) -> dict[str, float]:
    found: dict[str, float] = {"dsan_study_round": run.round, "dsan_study_rounds": run.rounds}
    if run.changed is not None:
        found["dsan_study_unchanged_seconds"] = now - run.changed
    if run.round_began is not None and run.round_deadline is not None:
        found["dsan_round_age_seconds"] = now - run.round_began
        found["dsan_round_deadline_seconds"] = run.round_deadline - now
    if run.round_seconds is not None:
        found["dsan_round_duration_seconds"] = run.round_seconds
    return found


def _sites(sites: list[tuple[SiteInRun, bool]], now: float) -> Iterator[Metric]:
    kinds = Counter(_kind(site) for site, _ in sites)
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
    for site, is_late in sites[:MOST_SITES]:
        for name, value in _of_site(site, is_late, now).items():
            values[name][1][site.name] = value
        for phase in PHASES if site.is_connected else ():
            phases.add_metric([site.name, phase], float(site.report.phase == phase))
    yield from _gauges(values, "site")
    yield phases


def _of_site(site: SiteInRun, is_late: bool, now: float) -> dict[str, float]:
    found = {"dsan_site_connected": float(site.is_connected), "dsan_site_late": float(is_late)}
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


def _ledgers(runs: list[tuple[RunStatus, Path]]) -> Iterator[Metric]:
    """What came of every asked update, each site, branch and round counted once, by its last word."""
    accepted = CounterMetricFamily("dsan_updates_accepted", "Updates averaged.", labels=["study"])
    by_code = {
        status: CounterMetricFamily(f"dsan_updates_{status}", text, labels=["study", "code"])
        for status, text in (
            ("rejected", "Updates not averaged, by code."),
            ("missing", "Updates that never came."),
        )
    }
    by_way = {
        way: CounterMetricFamily(
            f"dsan_bytes_{way}_sites", f"Bytes {way} the sites in finished rounds.", labels=["study"]
        )
        for way in ("to", "from")
    }
    for run, run_folder in runs:
        codes = _codes(run_folder)
        accepted.add_metric([run.study], codes["accepted"].total())
        for status, counter in by_code.items():
            for code, n in sorted(codes[status].items())[:MOST_CODES]:
                counter.add_metric([run.study, code], n)
        rounds = read_rounds(run_folder)
        by_way["to"].add_metric([run.study], sum(r.bytes_to_sites for r in rounds))
        by_way["from"].add_metric([run.study], sum(r.bytes_from_sites for r in rounds))
    yield accepted
    yield from by_code.values()
    yield from by_way.values()


def _codes(run_folder: Path) -> dict[str, Counter[str]]:
    """How many updates are accepted, rejected and missing, by code."""
    last = {
        (line["round"], line["site"], line["branch"]): (str(line["status"]), str(line.get("code") or ""))
        for line in read_ledger(run_folder)
        if line.get("event") == "round"
    }
    return {
        status: Counter(code for found, code in last.values() if found == status)
        for status in ("accepted", "rejected", "missing")
    }


def _validation(runs: list[tuple[RunStatus, Path]]) -> Metric:
    gauge = GaugeMetricFamily(
        "dsan_validation_score",
        "Pooled AUC, of VB-Net the mean Dice, of the newest validated weights.",
        labels=["study", "branch"],
    )
    for run, run_folder in runs:
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


def _gauges(values: dict[str, tuple[str, dict[str, float]]], label: str) -> Iterator[Metric]:
    """A gauge for each name, with its text and its values by label."""
    for name, (text, by_label) in values.items():
        gauge = GaugeMetricFamily(name, text, labels=[label])
        for labelled, value in by_label.items():
            gauge.add_metric([labelled], value)
        yield gauge


def _gauge(name: str, text: str, value: float) -> Metric:
    gauge = GaugeMetricFamily(name, text)
    gauge.add_metric([], value)
    return gauge
