"""dsan-server: the centre of a federated study, for its operator."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dsan_daemon.commands import command_line
from dsan_model.configuration import ConfigurationError
from server.refusals import ExitCode, RefusedError

if TYPE_CHECKING:
    from server.centre import Centre
    from server.wishes import Wish

# Commands import what they need when they run: torch and Flower take seconds, --help may not.

app = command_line(__doc__)

Folder = Annotated[Path, typer.Option("--dir", help="The centre's folder.")]
OfStudy = Annotated[
    str | None, typer.Option("--study", metavar="RUN", help="Of this study alone (default: of every one).")
]
HERE = Path()
NODES_S = 30.0  # how long `enrol` waits for the daemon to let the sites in


@app.command()
def init(
    host: Annotated[str, typer.Option(help="Name or address by which hospitals reach this computer.")],
    folder: Folder = HERE,
) -> None:
    """Make a centre's folder: settings, a study with the paper's values, keys and certificates.

    Example: dsan-server init --dir centre --host dsan.example.org
    """
    with _coded_exit():
        from server.founding import found_centre

        fingerprint = found_centre(folder, host)
        _print(f"centre in {folder}: server.toml, study.toml, tls/")
        _print(f"fingerprint of its authority (SHA-256), for the sites to compare:\n  {fingerprint}")
        _print(f"next: dsan-server start --dir {folder}")


@app.command()
def enrol(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="NAME.enrol.json of a site.")],
    folder: Folder = HERE,
) -> None:
    """Admit sites by the requests that they sent, and write NAME.kit.json for each.

    Compare the fingerprints with each site by telephone before you send the kit.

    Example: dsan-server enrol hospital-1.enrol.json
    """
    refused = False
    with _coded_exit():
        from server.admittance import enrol_site
        from server.centre import open_centre
        from server.founding import authority_fingerprint
        from server.sites import await_nodes, who_lets_in

        centre, config = open_centre(folder)
        enrolled = []
        for file in files:
            try:
                site = enrol_site(centre, config, file)
                enrolled.append(site.name)
            except RefusedError as error:
                refused = True
                _complain(error)
                continue
            _print(f"{site.name} is enrolled; its answer is {site.kit}")
            _print(f"  its node key:   {site.fingerprint}")
            _print(f"  its watch key:  {site.watch_fingerprint}")
        if late := await_nodes(centre, enrolled, NODES_S):
            _print(f"not let in yet: {', '.join(late)}; {who_lets_in(centre)}")
        if enrolled:
            _print(f"the authority in the kits (SHA-256): {authority_fingerprint(centre)}")
            _print(
                "Compare these by telephone with each site before you send its kit: they must be what "
                "`dsan-client init` printed there. If they are not: `dsan-server revoke NAME`."
            )
    if refused:
        raise typer.Exit(ExitCode.BAD_DATA)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The site.")],
    folder: Folder = HERE,
) -> None:
    """End a site's part for good: its certificate is revoked and its node unregistered.

    The site may be enrolled again later, with new keys. A study that needs it does not wait for it.

    Example: dsan-server revoke hospital-1
    """
    with _coded_exit():
        from server.admittance import revoke_site
        from server.centre import open_centre
        from server.run_commands import studies_that_need

        centre, _ = open_centre(folder)
        site = revoke_site(centre, name)
        _print(f"{site.name} is revoked; a daemon that runs cuts it off within seconds")
        for run, state in studies_that_need(centre, name).items():
            _print(
                f"study {run} ({state}) has a part for it: it goes on without it if its quorum allows that, "
                f"and ends as incomplete; otherwise it pauses (`dsan-server status {run}`)"
            )


@app.command()
def renew(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SITE]...", help="Sites; none: the server's own certificate.", show_default=False
        ),
    ] = None,
    folder: Folder = HERE,
    authority: Annotated[
        bool, typer.Option("--authority", help="The authority's own, the server's and every site's.")
    ] = False,
) -> None:
    """Give certificates a later end, with the keys as they are; nobody is enrolled anew.

    A daemon that runs takes the server's at once. A site gets a new NAME.kit.json, for `dsan-client join`.

    Example: dsan-server renew hospital-1 hospital-2
    """
    if names and authority:
        raise typer.BadParameter("--authority renews every site: name none")
    with _coded_exit():
        from server.centre import open_centre
        from server.founding import authority_fingerprint
        from server.renewal import renew_consortium, renew_server, renew_sites

        centre, config = open_centre(folder)
        if authority:
            ends, sites = renew_consortium(centre, config)
            _print(f"the authority and the list of revoked certificates last until {ends:%Y-%m-%d}")
            _print(f"fingerprint of its new certificate (SHA-256):\n  {authority_fingerprint(centre)}")
        elif names:
            sites = renew_sites(centre, config, names)
        else:
            sites = []
            _print(f"the server's certificate lasts until {renew_server(centre, config):%Y-%m-%d}")
        for site in sites:
            _print(f"{site.name}: until {site.ends:%Y-%m-%d}; send it {site.kit}, for `dsan-client join`")


@app.command()
def start(
    folder: Folder = HERE,
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="No TLS, no keys, no proxy, on 127.0.0.1: for trying.")
    ] = False,
) -> None:
    """The daemon: lets sites in, and keeps the studies going that `train` and `resume` asked for.

    It runs in the foreground until SIGTERM; systemd starts it again after a crash or a power cut.

    Example: dsan-server start --dir centre
    """
    with _coded_exit():
        from dsan_daemon.logs import configure_logs
        from server.centre import open_centre
        from server.daemon import run_daemon

        centre, config = open_centre(folder)
        configure_logs(config.log_level.upper())
        logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request at INFO
        run_daemon(centre, config, insecure_loopback)


@app.command()
def train(
    study: Annotated[Path, typer.Argument(metavar="STUDY.toml", help="What is to be studied.")],
    folder: Folder = HERE,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Estimate time and traffic only.")] = False,
) -> None:
    """Start a study in runs/NAME and follow it; Ctrl-C leaves it running.

    Exit code: 0 complete, 69 no daemon runs, 70 failed, paused or incomplete, 78 the study is wrong.

    Example: dsan-server train study.toml
    """
    with _coded_exit():
        from server.centre import open_centre
        from server.run_commands import train_study

        centre, _ = open_centre(folder)
        _follow(centre, train_study(centre, study, dry_run), detach)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The study's name.")],
    folder: Folder = HERE,
    detach: Annotated[bool, typer.Option("--detach", help="Do not wait for its end.")] = False,
) -> None:
    """Go on with a study that paused or was stopped, from its newest state; or watch one that runs.

    Of one that is complete a damaged model package is written again.

    Example: dsan-server resume first-study
    """
    with _coded_exit():
        from server.centre import open_centre
        from server.package_repair import repair_packages
        from server.run_commands import resume_study

        centre, _ = open_centre(folder)
        wish = resume_study(centre, run)
        if wish is None:
            for package in repair_packages(centre.run(run)):
                _print(f"{package} was not whole, and is written again from the rounds")
            _print(f"study {run} is complete: see {centre.run(run) / 'report.html'}")
        else:
            _follow(centre, wish, detach)


@app.command()
def stop(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The study's name.")], folder: Folder = HERE
) -> None:
    """End a study, here and at the sites; `resume` goes on with it from its newest state.

    Example: dsan-server stop first-study
    """
    with _coded_exit():
        from server.centre import open_centre
        from server.run_commands import stop_study

        centre, _ = open_centre(folder)
        stop_study(centre, run)
        _print(f"study {run} is stopped; sites that are away are told when they come back")


@app.command()
def drain(
    site: Annotated[str, typer.Argument(metavar="SITE", help="An enrolled site.")],
    study: OfStudy = None,
    folder: Folder = HERE,
) -> None:
    """Let a site finish the message in work and take no other, until `undrain`.

    Without --study its messages wait here meanwhile; with it they are refused there (SITE-DRAINED).

    Example: dsan-server drain hospital-1
    """
    _order(folder, site, "drain", study)


@app.command()
def undrain(
    site: Annotated[str, typer.Argument(metavar="SITE", help="An enrolled site.")],
    study: OfStudy = None,
    folder: Folder = HERE,
) -> None:
    """Let a site take messages again; without --study those of every study.

    Example: dsan-server undrain hospital-1
    """
    _order(folder, site, "undrain", study)


@app.command()
def status(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="The study's name; the newest by default.")
    ] = None,
    folder: Folder = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep it up to date until Ctrl-C.")] = False,
) -> None:
    """Sites x rounds: who trained, who works on what, who is late and why.

    Example: dsan-server status --watch
    """
    with _coded_exit():
        from server.centre import open_centre, run_folder_of
        from server.status_text import status_json, status_text, watch_status

        centre, _ = open_centre(folder)
        if run is not None:
            run_folder_of(centre, run)
        if as_json:
            _print(status_json(centre.folder, run))
        elif watch:
            with suppress(KeyboardInterrupt):
                watch_status(centre.folder, run)
        else:
            _print(status_text(centre.folder, run).rstrip())


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The study's name.")], folder: Folder = HERE
) -> None:
    """Build report.html, tables and figures of a run again.

    Example: dsan-server report first-study
    """
    with _coded_exit():
        from server.centre import open_centre, run_folder_of
        from server.report import write_report
        from server.report_input import ReportError

        centre, _ = open_centre(folder)
        try:
            _print(str(write_report(run_folder_of(centre, run))))
        except ReportError as error:
            _complain(error)
            raise typer.Exit(ExitCode.BAD_DATA) from None


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The study's name.")],
    out: Annotated[Path, typer.Argument(help="New folder for the model package.")],
    folder: Folder = HERE,
    onnx: Annotated[
        bool, typer.Option("--onnx", help="Write an ONNX graph of each branch too (extra: onnx).")
    ] = False,
) -> None:
    """Write the study's model package, checked by all its digests, with a MONAI bundle's metadata.

    Example: dsan-server export first-study first-model --onnx
    """
    with _coded_exit():
        from server.centre import open_centre, run_folder_of
        from server.export import export_package

        centre, _ = open_centre(folder)
        _print(f"model package: {export_package(run_folder_of(centre, run), out, has_onnx=onnx)}")


def _order(folder: Path, site: str, order: Literal["drain", "undrain"], study: str | None) -> None:
    with _coded_exit():
        from server.centre import open_centre
        from server.run_commands import order_site

        centre, _ = open_centre(folder)
        about = "every study" if study is None else f"study {study}"
        if order_site(centre, site, order, study):
            _print(f"{site} was told: {order}, {about}")
        else:
            _print(f"{site} is not connected: it is told ({order}, {about}) if it comes back within 12 hours")


def _follow(centre: "Centre", wish: "Wish", detach: bool) -> None:
    from server.run_commands import follow_study, how_to_look

    if detach:
        _print(how_to_look(wish.run))
        return
    try:
        outcome = follow_study(centre, wish)
    except KeyboardInterrupt:
        _print(how_to_look(wish.run))
        return
    _print(outcome.text)
    raise typer.Exit(outcome.exit_code)


@contextmanager
def _coded_exit() -> Iterator[None]:
    """A refusal of the whole command: what, where, why and what to do on stderr, and its exit code."""
    try:
        yield
    except RefusedError as error:
        _complain(error)
        raise typer.Exit(error.exit_code) from None
    except ConfigurationError as error:
        _complain(error)
        raise typer.Exit(ExitCode.BAD_CONFIGURATION) from None
    except BrokenPipeError:  # of whoever reads what we print
        raise
    except OSError as error:
        number, where = error.errno, str(error.filename or "a file of the centre")
        fix = "Free some disk, or give back the rights to the file; then give the command again."
        reason = f"the operating system refused: {error.strerror or error}"
        _complain(RefusedError(f"CENTRE-OS-{number}", where, reason, fix, ExitCode.FAILED))
        raise typer.Exit(ExitCode.FAILED) from None


def _complain(error: Exception) -> None:
    sys.stderr.write(f"{error}\n")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> Any:
    """Entry point of dsan-server."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    return app()


if __name__ == "__main__":
    main()
