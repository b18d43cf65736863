"""Prometheus metrics of a site (docs/reference/metrics.md), computed at every scrape.

Labels are of a closed set: branch, phase, code, kind. Nothing here names a case, a patient or a path.
"""

import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from client.certificate_ends import certificate_ends
from client.daemon_status import ConnectionStatus
from client.egress import read_egress
from client.site import ALL_KINDS, SiteConfig
from dsan_model.watch import PHASES
from dsan_model.watch_pb2 import SiteStatus

MOST_CODES = 64
OTHER = "other"  # a kind of message that this release does not know
GPU_QUERY = ("--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits")
GPU_TIMEOUT_S = 5.0
MIB = 1 << 20


def site_registry(
    site: SiteConfig, status: Callable[[], SiteStatus], connection: Callable[[], ConnectionStatus]
) -> CollectorRegistry:
    """A registry whose scrape looks at the status, the connection, the egress record and the GPUs."""
    registry = CollectorRegistry()
    registry.register(SiteCollector(site, status, connection))
    return registry


class SiteCollector(Collector):
    """The metrics of one hospital's daemon."""

    def __init__(
        self, site: SiteConfig, status: Callable[[], SiteStatus], connection: Callable[[], ConnectionStatus]
    ) -> None:
        self._site = site
        self._status = status
        self._connection = connection

    def describe(self) -> list[Metric]:
        """Nothing: a registry would otherwise scrape once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every metric as of now."""
        yield from _connection(self._connection())
        yield from _work(self._status())
        yield from _egress(self._site.state_folder)
        disk = shutil.disk_usage(self._site.home)
        yield _gauge("dsan_client_disk_free_bytes", "Free disk where the site's folder lies.", disk.free)
        yield _certificates(self._site.keys_folder)
        yield from _gpus()


def _connection(connection: ConnectionStatus) -> Iterator[Metric]:
    connected, watched = float(connection.is_connected), float(connection.watched_since is not None)
    yield _gauge("dsan_client_connected", "Whether the SuperNode talks with the centre.", connected)
    yield _gauge("dsan_client_watched", "Whether the SiteWatch stream to the centre stands.", watched)
    if connection.last_contact is not None:
        age = max(0.0, time.time() - connection.last_contact)
        yield _gauge("dsan_client_last_contact_age_seconds", "Since the SuperNode heard the centre.", age)
    if connection.clock_ahead_s is not None:
        ahead = connection.clock_ahead_s
        yield _gauge(
            "dsan_client_clock_ahead_seconds", "Our clock over the centre's; 5 s are refused.", ahead
        )


def _work(status: SiteStatus) -> Iterator[Metric]:
    phase = GaugeMetricFamily("dsan_client_phase", "1 for the phase that the site is in.", labels=["phase"])
    for name in PHASES:
        phase.add_metric([name], float(name == status.phase))
    yield phase
    yield _gauge("dsan_client_round", "The round in work; 0: none.", status.round)
    yield _gauge("dsan_client_steps_done", "Steps of the phase that are done.", status.done)
    yield _gauge("dsan_client_steps", "Steps of the phase; in training a step is a batch.", status.steps)
    yield _gauge("dsan_client_eta_seconds", "Until the phase ends, as the site reckons.", status.eta_s)


def _egress(state_folder: Path) -> Iterator[Metric]:
    messages: Counter[tuple[str, str]] = Counter()
    sent_bytes = 0
    for line in read_egress(state_folder):
        messages[line.kind if line.kind in ALL_KINDS else OTHER, line.code or ""] += 1
        sent_bytes += line.bytes
    counter = CounterMetricFamily(
        "dsan_client_messages",
        "Messages that left, by kind, and by code where they refuse.",
        labels=["kind", "code"],
    )
    for (kind, code), n in sorted(messages.items())[: MOST_CODES * len(ALL_KINDS)]:
        counter.add_metric([kind, code], n)
    yield counter
    total = CounterMetricFamily("dsan_client_egress_bytes", "Bytes of the messages that left.")
    total.add_metric([], sent_bytes)
    yield total


def _certificates(keys: Path) -> Metric:
    gauge = GaugeMetricFamily(
        "dsan_client_certificate_expiry_timestamp_seconds", "When a certificate ends.", labels=["kind"]
    )
    for kind, ends in certificate_ends(keys).items():
        gauge.add_metric([kind], ends)
    return gauge


def _gpus() -> Iterator[Metric]:
    used = GaugeMetricFamily("dsan_client_gpu_memory_used_bytes", "GPU memory in use.", labels=["kind"])
    size = GaugeMetricFamily("dsan_client_gpu_memory_size_bytes", "GPU memory there is.", labels=["kind"])
    for index, used_mib, size_mib in gpu_memory():
        used.add_metric([f"gpu{index}"], used_mib * MIB)
        size.add_metric([f"gpu{index}"], size_mib * MIB)
    yield used
    yield size


def gpu_memory() -> list[tuple[int, int, int]]:
    """Index, memory in use and memory in MiB of every GPU that nvidia-smi knows; empty without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, *GPU_QUERY], capture_output=True, text=True, timeout=GPU_TIMEOUT_S)
        rows = [line.split(",") for line in done.stdout.splitlines() if line.strip()]
        return [(int(index), int(used), int(size)) for index, used, size in rows]
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return []


def _gauge(name: str, text: str, value: float) -> Metric:
    gauge = GaugeMetricFamily(name, text)
    gauge.add_metric([], value)
    return gauge
