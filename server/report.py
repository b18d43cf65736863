"""report.html of a run: one file without scripts or outside resources; tables and figures beside it."""

import base64
from functools import cache
from pathlib import Path

from jinja2 import Template
from markupsafe import Markup

from dsan_daemon.pages import page_environment
from server.report_blocks import ratio_text, score_text
from server.report_headline import banner, facts, state
from server.report_input import RunFolder, read_run_folder
from server.report_sections import figure_panels, sections
from server.svg import figure_file
from server.tables import write_tables

TEMPLATE = "report.html.jinja"


def write_report(run_folder: Path) -> Path:
    """Write report.html, tables/*.csv and figures/*.svg of a run; returns the path of the page.

    Reads results.json and, where they exist, ledger.jsonl and figures/panels. The same inputs give the same
    bytes. Raises ReportError if there are no results to report.
    """
    run = read_run_folder(run_folder)
    write_tables(run, run_folder / "tables")
    _write_figures(run, run_folder / "figures")
    report = run_folder / "report.html"
    unfinished = report.with_suffix(".tmp")
    unfinished.write_text(report_html(run), encoding="utf-8")
    unfinished.replace(report)
    return report


def report_html(run: RunFolder) -> str:
    """The page as text. Everything from the run folder is escaped; only our own SVG is markup."""
    study = run.results.study
    return _template().render(
        study=study,
        state=state(run),
        banner=banner(study),
        facts=facts(run.results),
        sections=sections(run),
        problems=run.problems,
    )


@cache
def _template() -> Template:
    environment = page_environment(Path(__file__).parent)
    environment.filters["svg"] = Markup
    environment.filters["score"] = score_text
    environment.filters["ratio"] = ratio_text
    environment.filters["base64"] = lambda png: base64.b64encode(png).decode("ascii")
    return environment.get_template(TEMPLATE)


def _write_figures(run: RunFolder, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, panels in figure_panels(run).items():
        path = folder / f"{name}.svg"
        if panels:
            path.write_text(figure_file(panels), encoding="utf-8")
        else:
            path.unlink(missing_ok=True)
