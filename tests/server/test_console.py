"""The console over real HTTP, and in a real browser where there is one."""

import fcntl
import json
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from centre_folder import write_centre, write_watched
from debian_programs import debian_program
from self_signed import write_certificates

from server.console import Access, ConsoleServer
from server.ledger import LedgerEntry, append_event, append_round
from server.watch_file import SiteReport, WatchedSite

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def centre(tmp_path: Path) -> Iterator[Path]:
    with (write_centre(tmp_path) / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


@pytest.fixture
def console(centre: Path) -> Iterator[str]:
    server = ConsoleServer(centre)
    yield f"http://127.0.0.1:{server.start()}"
    server.stop()


def page(url: str) -> str:
    answer = httpx.get(url)
    assert answer.status_code == 200
    return answer.text


def words(html: str) -> str:
    """The page's text without marks."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def test_the_page_shows_the_round_each_site_and_who_is_late(console: str) -> None:
    html = page(console)
    text = words(html)
    assert "round 3 of 5" in text
    assert "30 of 120" in text
    assert "south : not connected for 5" in text
    assert html.count('class="cell accepted"') == 5
    assert html.count('class="cell missing"') == 1
    assert 'title="SITE-GPU-MEMORY: the GPU&#39;s memory does not suffice"' in html


def test_the_page_has_curves_of_both_branches_pooled_and_by_site(console: str) -> None:
    html = page(console)
    for label in ("AUC on the validation cases of all sites", "training loss, mean over all cases"):
        assert f'aria-label="{label}"' in html
    assert all(f'aria-label="{site}"' in html for site in ("east", "north", "south"))
    assert all(f'aria-label="{name}: norm of the update' in html for name in ("US", "SS"))


def test_the_cosine_is_drawn_once_the_ledger_has_it(console: str, centre: Path) -> None:
    assert "cosine with the mean" not in page(console)
    entry = LedgerEntry(3, "east", "us", "accepted", relative_update=0.02, cosine=0.83)
    append_round(centre / "runs" / "eight", [entry])
    html = page(console)
    assert 'aria-label="US: cosine with the mean"' in html
    assert ">0.83<" in html


def test_what_sites_and_ledger_say_is_text_never_markup(console: str, centre: Path) -> None:
    run = centre / "runs" / "eight"
    append_event(run, HOSTILE, HOSTILE)
    append_round(run, [LedgerEntry(3, HOSTILE, "us", "rejected", code=HOSTILE, message=HOSTILE)])
    hostile = WatchedSite(SiteReport(phase=HOSTILE, last_error=HOSTILE), time.time(), True, 1.0)
    write_watched(centre, **{HOSTILE: hostile})
    html = page(console)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 5


def test_every_run_is_listed_with_its_state(console: str, centre: Path) -> None:
    other = centre / "runs" / "nine"
    other.mkdir()
    (other / "study.toml").write_text('name = "nine"\n')
    append_event(other, "paused", "north is late")
    text = words(page(console))
    assert "eight running this page" in text
    assert "nine paused" in text
    assert "nine paused this page" in words(page(f"{console}/runs/nine"))


def test_the_page_is_self_contained_and_has_no_script(console: str) -> None:
    html = page(console)
    assert "<script" not in html
    assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
    assert 'http-equiv="refresh"' in html


def test_headers_allow_no_script_no_frame_and_no_copy(console: str) -> None:
    for path in ("/", "/nowhere", "/runs/eight"):
        headers = httpx.get(console + path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers


def test_a_run_is_opened_by_its_name_and_its_report_linked_when_there_is_one(
    console: str, centre: Path
) -> None:
    assert httpx.get(f"{console}/runs/eight/report.html").status_code == 404
    (centre / "runs" / "eight" / "report.html").write_text("<p>the report</p>")
    assert 'href="/runs/eight/report.html"' in page(f"{console}/runs/eight")
    assert "the report" in page(f"{console}/runs/eight/report.html")


@pytest.mark.parametrize("path", ["/runs/nine", "/runs/..%2f..", "/runs/%2e%2e", "/docs", "/openapi.json"])
def test_what_is_not_there_is_not_found(console: str, path: str) -> None:
    assert httpx.get(console + path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(console: str, method: str) -> None:
    assert httpx.request(method, console + "/").status_code == 405


def test_json_is_that_of_the_status(console: str) -> None:
    found = json.loads(page(f"{console}/status.json"))
    assert found["run"]["round"] == 3


def test_a_request_for_another_host_is_refused_on_loopback(console: str) -> None:
    assert httpx.get(console, headers={"Host": "evil.example"}).status_code == 400


def test_elsewhere_than_on_loopback_a_token_is_asked_for_over_tls(centre: Path) -> None:
    with pytest.raises(ValueError, match="needs a token"):
        ConsoleServer(centre, "0.0.0.0")
    write_certificates(centre, "server")
    server = ConsoleServer(centre, access=Access("t0ken", centre / "server.crt", centre / "server.key"))
    url = f"https://127.0.0.1:{server.start()}"
    with httpx.Client(verify=ssl.create_default_context(cafile=str(centre / "server.crt"))) as client:
        assert client.get(url).status_code == 401
        assert client.get(url, auth=("operator", "guessed")).status_code == 401
        assert client.get(url, headers={"Authorization": "Basic t0ken"}).status_code == 401
        assert client.get(url, auth=("operator", "t0ken")).status_code == 200
        assert client.get(url, headers={"Authorization": "Bearer t0ken"}).status_code == 200
    with pytest.raises(httpx.TransportError):
        httpx.get(url.replace("https", "http"))
    server.stop()


def test_a_port_that_is_taken_is_an_error(centre: Path, console: str) -> None:
    with pytest.raises(OSError, match="in use"):
        ConsoleServer(centre, port=int(console.rpartition(":")[2])).start()


def test_a_centre_without_a_run_has_a_page(tmp_path: Path) -> None:
    server = ConsoleServer(tmp_path)
    assert "No run yet" in page(f"http://127.0.0.1:{server.start()}")
    server.stop()


def test_a_browser_without_scripts_shows_it(console: str, tmp_path: Path) -> None:
    browser = debian_program("chromium")
    options = (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}/profile",
        "--dump-dom",
    )
    done = subprocess.run(
        [str(browser), *options, console], capture_output=True, text=True, timeout=120, check=True
    )
    assert "round" in words(done.stdout)
    assert "<svg" in done.stdout
    assert "30 of 120" in words(done.stdout)
