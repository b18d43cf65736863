"""dsan-client: one hospital's part of a federated study, and one scan to a diagnosis."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from client.finding_table import EXIT_BAD_DATA, EXIT_FAILED, exit_code, findings_text
from client.findings import Finding, FindingError
from client.slice_thickness import MAX_SLICE_THICKNESS_MM
from dsan_daemon.commands import command_line

# Commands import what they need when they run: torch and SimpleITK take seconds, --help may not.

STARTED = time.monotonic()
EXIT_INTERRUPTED = 130  # as a shell says of SIGINT

app = command_line(__doc__)


class Device(StrEnum):
    """What networks run on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class SegmentationPreset(StrEnum):
    """Sizes of VB-Net."""

    FULL = "full"
    DEMO = "demo"
    TINY = "tiny"


class PrecisionName(StrEnum):
    """What the convolutions of a network are computed in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def _finite(value: float) -> float:
    """NaN passes every limit of an option."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a number to compare with")
    return value


Config = Annotated[Path, typer.Option(help="The site's settings.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Labels = Annotated[
    Path, typer.Option(help="CSV: label, and study_uid, accession or patient_id.", show_default=False)
]
Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="The export, folders of any shape; or a PACS: dimse://AE@HOST:PORT, http://HOST/dicom-web.",
        show_default=False,
    ),
]
ReceivePort = Annotated[
    int, typer.Option(min=1, max=65535, help="Where a PACS by DIMSE sends the images to.")
]
Timeout = Annotated[
    float, typer.Option(min=0.1, callback=_finite, help="Seconds to wait for an answer of the PACS.")
]
Workers = Annotated[
    int | None, typer.Option(min=0, help="Processes; 0: one for each core (default: site.toml's).")
]


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="Name of the site, as the study will call it.")],
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="The centre.", show_default=False)],
    folder: Annotated[Path, typer.Option("--dir", help="The site's folder.")] = Path(),
) -> None:
    """Make a folder a site's: settings, keys that never leave it, and the request to send to the operator.

    What the engineer wrote into site.toml stays, and so do keys that are there. Exit code: 0, or 78 if the
    folder is another site's or a setting is wrong.

    Example: dsan-client init st-mary --server centre.example.org:8443 --dir hospital
    """
    with _coded_exit():
        from client.site_folder import init_site, init_text

        _print(init_text(init_site(folder, name, server)))


@app.command()
def join(
    kit: Annotated[Path, typer.Argument(help="The operator's answer, NAME.kit.json.", show_default=False)],
    config: Config = Path("site.toml"),
    new_authority: Annotated[
        bool, typer.Option("--new-authority", help="Trust another centre than the one joined before.")
    ] = False,
) -> None:
    """Take the operator's answer and try the connection.

    Exit code: 0 the centre takes this site, 69 it cannot be reached, 77 it refuses, 78 the kit does not
    belong to this site or this release.

    Example: dsan-client join st-mary.kit.json --config hospital/site.toml
    """
    with _coded_exit():
        from client.join import join as join_site
        from client.join import join_text

        joined = join_site(kit, config, _print, takes_new_authority=new_authority)
        _print(join_text(joined, config))


@app.command()
def start(
    config: Config = Path("site.toml"),
    insecure_loopback: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="A SuperLink in the clear on this computer, for trying."),
    ] = None,
    insecure_watch: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Its SiteWatch, with --insecure-loopback."),
    ] = None,
) -> None:
    """The daemon: takes part in studies until SIGTERM; one for each site's folder.

    It connects for ever, whatever happens to the centre or to its own processes; `dsan-client status` says
    how it fares. Exit code: 0 when it was told to leave, 77 another daemon runs, 78 settings, not joined.

    Example: dsan-client start --config hospital/site.toml
    """
    loopback = _loopback(insecure_loopback, insecure_watch)
    with _coded_exit():
        from client.daemon import run_daemon
        from client.daemon_programs import Centre
        from dsan_daemon.logs import configure_logs

        configure_logs()
        run_daemon(config, None if loopback is None else Centre(*loopback, is_secure=False))


@app.command()
def status(config: Config = Path("site.toml"), as_json: AsJson = False) -> None:
    """What the daemon does: connection, study, round, phase, cases, what left, what was refused.

    Exit code: 0 the daemon runs, 70 it does not, 78 site.toml.

    Example: dsan-client status --config hospital/site.toml
    """
    with _coded_exit():
        from client.daemon_status import status_json, status_text
        from client.site import read_site

        site = read_site(config)
        found = status_json(site)
        _print(json.dumps(found, indent=1) if as_json else status_text(site))
        raise typer.Exit(0 if found["is_running"] else EXIT_FAILED)


@app.command()
def check(config: Config = Path("site.toml"), as_json: AsJson = False) -> None:
    """Audit machine, settings and cohort, and compute the golden case; nothing is written.

    Exit code: 0 fit to prepare, 65 a case is unusable, 70 the golden case comes out wrong, 78 the
    configuration or the computer must be changed.

    Example: dsan-client check --config hospital/site.toml
    """
    with _coded_exit():
        from client.check import check_site
        from client.check_report import check_json, check_text
        from client.site import read_site
        from client.terminal import progress_shown

        site = read_site(config)
        with progress_shown("checking cases") as (progress,):
            result = check_site(site, progress)
        _print(json.dumps(check_json(result), indent=1) if as_json else check_text(result, config))
        raise typer.Exit(exit_code(result.findings))


@app.command()
def prepare(
    config: Config = Path("site.toml"),
    workers: Workers = None,
    segmentation: Annotated[
        bool, typer.Option("--segmentation", help="Whole scans, to train VB-Net, instead.")
    ] = False,
    remove_unused: Annotated[
        bool, typer.Option("--remove-unused", help="Delete stored volumes that belong to no case any more.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Prepare every case of the cohort, and draw the page on which to look at them.

    What was prepared before is found again; a run that was ended goes on where it was. Bad cases are left
    out, the others go on. Exit code: 0 all cases are prepared, 65 some were left out, 70 the work could not
    be ended (a full disk), 78 bad configuration.

    Example: dsan-client prepare --config hospital/site.toml --workers 8
    """
    with _coded_exit(ended="ended; run it again, what is done is kept"):
        from client.preparation import prepare_cohort, segmentation_target
        from client.preparation_report import preparation_json, preparation_text, segmentation_text
        from client.qc_page import write_qc_page
        from client.site import read_site
        from client.terminal import progress_shown

        site = read_site(config)
        target = segmentation_target(site) if segmentation else None
        with progress_shown("preparing cases") as (progress,):
            result = prepare_cohort(site, workers, progress, remove_unused, target)
        page = None if segmentation else write_qc_page(site, result)
        code = EXIT_BAD_DATA if result.n_left_out or not result.entries else 0
        if as_json:
            _print(json.dumps(preparation_json(result, site.name, page, code), indent=1))
        elif page is None:
            _print(segmentation_text(result, config))
        else:
            _print(preparation_text(result, page, config, has_centre=bool(site.server.address)))
        raise typer.Exit(code)


@app.command("segment-train")
def segment_train(
    out: Annotated[Path, typer.Option(help="Where the weights go.")] = Path("vbnet.safetensors"),
    config: Config = Path("site.toml"),
    preset: Annotated[SegmentationPreset, typer.Option(help="Size of network and patches.")] = (
        SegmentationPreset.FULL
    ),
    rounds: Annotated[int | None, typer.Option(min=1, help="Epochs (default: the preset's).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Decides first weights, fold and draws.")] = 0,
) -> None:
    """Train VB-Net (lungs and infection) on this site's own scans; nothing leaves the site.

    Needs `dsan-client prepare --segmentation`. A fifth of the patients validates each epoch; OUT has the best
    epoch's weights, from the first epoch on. The same command goes on after the last epoch that was done,
    also with more --rounds. Exit code: 0 done, 65 there are too few cases or the loss diverged, 70 nothing is
    prepared or OUT cannot be written, 78 bad configuration.

    Example: dsan-client segment-train --config hospital/site.toml --out vbnet.safetensors
    """
    with _coded_exit():
        from client.segment_train import train_here
        from client.site import read_site
        from client.terminal import say

        _print(train_here(read_site(config), out, preset.value, rounds, seed, say))


@app.command(name="import")
def import_(
    source: Source,
    labels: Labels,
    out: Annotated[Path, typer.Option(help="The site's folder; a second export is added.")] = Path(
        "hospital"
    ),
    name: Annotated[str, typer.Option(help="Name of the site, for a new site.toml.")] = "my-hospital",
    segment: Annotated[
        bool, typer.Option("--segment", help="Let a new site.toml ask for the built-in segmentation.")
    ] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0: one for each core.")] = 0,
    ae_title: Annotated[str, typer.Option(help="Ours, for a PACS by DIMSE.")] = "DSAN",
    receive_port: ReceivePort = 11112,
    timeout: Timeout = 60.0,
) -> None:
    """Turn a PACS export, or studies of a PACS itself, into a cohort under pseudonyms.

    Of each labelled study one series is taken, chosen by written rules. An export is only read; its files
    are linked, or copied where that is not possible. From a PACS the CT series of the labelled studies are
    fetched to OUT/pacs first; a transfer that broke off goes on. The key of the pseudonyms is made once, in
    OUT/pseudonym.key, and stays there. Exit code: 0 every labelled study of the export is a case, 65 some are
    not or something could not be read, 69 the PACS cannot be reached, 77 it refuses us, 78 bad configuration.

    Example: dsan-client import /data/export --labels labels.csv --out hospital --segment
    """
    with _coded_exit():
        from client.import_report import import_text
        from client.pacs_export import ImportRequest, import_export
        from client.pacs_source import PacsRequest, fetch_studies, is_pacs_address
        from client.terminal import progress_shown

        root, of_pacs = Path(source), tuple[Finding, ...]()
        if is_pacs_address(source):
            asked = PacsRequest(source, labels, out, ae_title, receive_port, timeout)
            with progress_shown("fetching studies") as (fetching,):
                fetched = fetch_studies(asked, fetching)
            root, of_pacs = fetched.root, fetched.findings
        request = ImportRequest(root, labels, out, name, segment, workers)
        steps = ("reading files of the export", "choosing series of studies")
        with progress_shown(*steps) as (scanning, choosing):
            result = import_export(request, scanning, choosing)
        result = replace(result, findings=(*of_pacs, *result.findings))
        _print(import_text(result, request))
        raise typer.Exit(exit_code(result.findings))


@app.command()
def diagnose(
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Folders of a study or series in DICOM; NIfTI, NRRD or MetaImage files.",
            show_default=False,
        ),
    ],
    model: Annotated[Path, typer.Option(help="A model package, as runs/NAME/model.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder to write to; one below it for each of several inputs.")],
    lung_mask: Annotated[Path | None, typer.Option(help="Lungs (default: segmented here).")] = None,
    infection_mask: Annotated[
        Path | None, typer.Option(help="Infection (default: a crude estimate).")
    ] = None,
    vbnet: Annotated[
        Path | None, typer.Option(help="Weights of VB-Net that segment where no mask is given.")
    ] = None,
    lungmask: Annotated[
        Path | None, typer.Option(help="Weights of lungmask's R231 that find the lungs instead (extra).")
    ] = None,
    device: Annotated[Device, typer.Option(help="What the networks run on.")] = Device.AUTO,
    precision: Annotated[
        PrecisionName, typer.Option(help="auto: bfloat16 at full size on a CPU that has it.")
    ] = PrecisionName.AUTO,
    max_slice_thickness: Annotated[
        float, typer.Option(min=0.1, max=50, callback=_finite, help="In mm.")
    ] = MAX_SLICE_THICKNESS_MM,
    as_json: AsJson = False,
) -> None:
    """P(COVID-19) of scans by a published model, with the picture of where it looked. For research only.

    Writes result.json and panel.png. The model is loaded once for all inputs. Exit code: 0 done, 65 a scan
    or the model cannot be used; other scans go on.

    Example: dsan-client diagnose scans/0412 --model runs/demo-seed0/model --out diagnosis
    """
    if len(inputs) > 1 and (lung_mask or infection_mask):
        raise typer.BadParameter("masks can be given for one INPUT only")
    with _coded_exit():
        from client.diagnose import Precision, Scan
        from client.diagnose_report import DiagnoseRequest, diagnose_scans
        from client.terminal import say

        masks = (lung_mask, infection_mask, max_slice_thickness, vbnet, lungmask)
        scans = [Scan(path, *masks) for path in inputs]
        request = DiagnoseRequest(tuple(scans), model, out, device.value, Precision(precision.value))
        outcome = diagnose_scans(request, import_s=time.monotonic() - STARTED, say=say)
        _print(json.dumps(outcome.results, indent=1) if as_json else outcome.text)
        raise typer.Exit(exit_code(outcome.errors))


def _loopback(superlink: str | None, watch: str | None) -> tuple[str, str | None] | None:
    """Addresses in the clear, which may be of this computer only."""
    for address in (superlink, watch):
        if address is not None and address.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
            raise typer.BadParameter(f"{address} is not 127.0.0.1:PORT: in the clear on this computer only")
    if superlink is None:
        if watch is not None:
            raise typer.BadParameter("--insecure-watch needs --insecure-loopback: over TLS it goes unsaid")
        return None
    return superlink, watch


@contextmanager
def _coded_exit(ended: str = "ended") -> Iterator[None]:
    """A refusal of the whole command: what, where, why and what to do on stderr, and its exit code.

    `ended` is said when Ctrl-C ends it.
    """
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"{ended}\n")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except FindingError as error:
        sys.stderr.write(f"{findings_text([error.finding])}\n")
        raise typer.Exit(exit_code([error.finding])) from None
    except BrokenPipeError:  # of whoever reads what we print
        raise
    except OSError as error:
        number, where = error.errno, str(error.filename or "a file of the site")
        fix = "Free some disk, or give back the rights to the file; then give the command again."
        reason = f"the operating system refused: {error.strerror or error}"
        finding = Finding(f"SITE-OS-{number}", "error", where, reason, fix)
        sys.stderr.write(f"{findings_text([finding])}\n")
        raise typer.Exit(EXIT_FAILED) from None


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> Any:
    """Entry point of dsan-client."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    return app()


if __name__ == "__main__":
    main()
