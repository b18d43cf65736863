"""Every metric is documented and scraped by a real Prometheus; every query of the dashboard returns data."""

import fcntl
import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from socket import socket
from typing import Any

import httpx
import pytest
from centre_folder import write_centre
from debian_programs import debian_program
from prometheus_client import CollectorRegistry
from self_signed import write_certificates

from client.daemon_status import ConnectionStatus
from client.egress import EgressLine, record_egress
from client.site import SiteConfig, read_site
from client.telemetry import site_registry
from dsan_daemon.health import HealthServer
from dsan_model.watch_pb2 import SiteStatus
from server.ledger import LedgerEntry, append_round
from server.telemetry import centre_registry

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "dsan.json"
RULES = ROOT / "deploy" / "prometheus" / "dsan.rules.yml"
PAGE = ROOT / "docs" / "reference" / "metrics.md"
LABELS = {"site", "study", "branch", "phase", "code", "kind"}
WAIT_S = 60.0
NVIDIA_SMI = "#!/bin/sh\necho '0, 1024, 81559'\n"  # what the real one prints for this query
CONFIG = """
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: dsan
    static_configs: [{{targets: ["127.0.0.1:{centre}", "127.0.0.1:{site}"]}}]
"""


def connected() -> ConnectionStatus:
    now = time.time()
    return ConnectionStatus(True, now - 2, None, "", "", 0.1, now - 60, "")


def training() -> SiteStatus:
    return SiteStatus(study="eight", round=3, branch="ss", phase="training", done=30, steps=120, eta_s=95)


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Path]:
    """A centre with a rejected update, certificates, and a study in work."""
    folder = tmp_path / "centre"
    folder.mkdir()
    run = write_centre(folder)
    append_round(run, [LedgerEntry(2, "south", "us", "rejected", code="UPDATE-TOO-LARGE", message="")])
    write_certificates(folder / "tls", "ca", "server")
    certificate = (folder / "tls" / "server.crt").read_text()
    east = {"name": "east", "revoked_at": None, "certificate": certificate}
    (folder / "sites" / "east.json").write_text(json.dumps(east))
    with (run / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteConfig:
    """A site that has sent a result and a refusal, on a computer with a GPU."""
    folder = tmp_path / "site"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "nvidia-smi").write_text(NVIDIA_SMI)
    (folder / "bin" / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    (folder / "site.toml").write_text('name = "east"\n')
    config = read_site(folder / "site.toml")
    write_certificates(config.keys_folder, "ca", "watch")
    for code, n_bytes in ((None, 5000), ("POLICY-STUDY", 300)):
        record_egress(
            config.state_folder, EgressLine(time.time(), "round", "eight", 3, n_bytes, "0" * 64, code)
        )
    return config


def families(*registries: CollectorRegistry) -> dict[str, set[str]]:
    """Labels by name as Prometheus sees it."""
    found: dict[str, set[str]] = {}
    for registry in registries:
        for family in registry.collect():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def site_metrics(site: SiteConfig) -> CollectorRegistry:
    return site_registry(site, training, connected)


def documented() -> dict[str, set[str]]:
    rows = re.findall(r"^\| `(dsan_\w+)` \|([a-z, ]*)\|", PAGE.read_text(), re.MULTILINE)
    return {name: set(labels.replace(",", " ").split()) for name, labels in rows}


def test_every_metric_is_documented_with_its_labels_and_every_documented_one_exists(
    centre: Path, site: SiteConfig
) -> None:
    found = families(centre_registry(centre), site_metrics(site))
    assert found == documented()
    assert set().union(*found.values()) <= LABELS


def test_the_sites_metrics_say_what_it_does_and_what_left(site: SiteConfig) -> None:
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in site_metrics(site).collect()
        for sample in family.samples
    }
    assert samples["dsan_client_connected",] == 1
    assert samples["dsan_client_phase", "training"] == 1
    assert samples["dsan_client_phase", "idle"] == 0
    assert samples["dsan_client_messages_total", "round", ""] == 1
    assert samples["dsan_client_messages_total", "round", "POLICY-STUDY"] == 1
    assert samples["dsan_client_egress_bytes_total",] == 5300
    assert samples["dsan_client_gpu_memory_used_bytes", "gpu0"] == 1 << 30


def test_a_gpu_that_does_not_answer_leaves_the_scrape_whole(site: SiteConfig) -> None:
    (site.home / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    assert "dsan_client_gpu_memory_used_bytes" not in families(site_metrics(site))
    assert "dsan_client_connected" in families(site_metrics(site))


def expressions() -> list[str]:
    """Every query of the dashboard, with its variables as Grafana fills them in for All."""
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    found += [annotation["expr"] for annotation in dashboard["annotations"]["list"]]
    variables = [item["definition"] for item in dashboard["templating"]["list"] if item["type"] == "query"]
    found += [re.fullmatch(r"label_values\((\w+), \w+\)", text)[1] for text in variables]  # type: ignore[index]
    return [expression.replace("$study", ".*").replace("$site", ".*") for expression in found]


def test_dashboard_and_alerts_use_documented_metrics_only() -> None:
    text = " ".join(expressions()) + RULES.read_text()
    assert set(re.findall(r"\bdsan_\w+", text)) <= set(documented())


def test_every_query_of_the_dashboard_returns_data_from_a_real_prometheus(
    centre: Path, site: SiteConfig, tmp_path: Path
) -> None:
    program = debian_program("prometheus")
    servers = [HealthServer(0, lambda: (True, ""), r) for r in (centre_registry(centre), site_metrics(site))]
    rules = tmp_path / "dsan.rules.yml"
    rules.write_text(RULES.read_text().replace("interval: 15s", "interval: 1s"))
    ports = [server.start() for server in servers]
    config = tmp_path / "prometheus.yml"
    config.write_text(CONFIG.format(rules=rules, centre=ports[0], site=ports[1]))
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [str(program), f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    process = subprocess.Popen([*command, f"--web.listen-address={url}"], stderr=subprocess.DEVNULL)
    try:
        empty = wait_for_data(f"http://{url}/api/v1/query", expressions())
    finally:
        process.terminate()
        process.wait()
        for server in servers:
            server.stop()
    assert empty == []


def wait_for_data(url: str, queries: list[str]) -> list[str]:
    """The queries that have no data in the end."""
    deadline = time.monotonic() + WAIT_S
    while queries and time.monotonic() < deadline:
        queries = [query for query in queries if not answers(url, query)]
        time.sleep(0.5)
    return queries


def answers(url: str, query: str) -> bool:
    try:
        found: dict[str, Any] = httpx.get(url, params={"query": query}).json()
    except (httpx.TransportError, ValueError):
        return False  # it is starting
    assert found["status"] == "success", (query, found)
    return bool(found["data"]["result"])
