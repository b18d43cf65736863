"""labels.csv: which study or patient has which diagnosis, in the hospital's own identifiers.

The column `label`, and at least one of `study_uid`, `accession` and `patient_id`; a line fills any of them,
and labels the studies that are called all that it says. Other columns are passed over.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from client.cohort_table import hidden_characters, nearest, read_some_columns
from client.findings import Finding, FindingError
from dsan_model.cases import Label

IDENTIFIERS = ("study_uid", "accession", "patient_id")  # the first that a line fills finds its studies


@dataclass(frozen=True)
class StudyIdentity:
    """What a study is called in the hospital; nothing is shown. Its files may differ in all but `uid`."""

    uid: str = field(repr=False)
    accessions: frozenset[str] = field(repr=False)
    patient_ids: frozenset[str] = field(repr=False)

    def names(self, identifier: str) -> frozenset[str]:
        """What a line of labels.csv may call it by one of IDENTIFIERS."""
        return {
            "study_uid": frozenset({self.uid}),
            "accession": self.accessions,
            "patient_id": self.patient_ids,
        }[identifier]


@dataclass(frozen=True)
class LabelLine:
    """A usable line of labels.csv."""

    line: int
    label: Label
    names: Mapping[str, str] = field(repr=False)  # by those of IDENTIFIERS that it fills, in their order

    @property
    def identifier(self) -> str:
        """The identifier that finds its studies."""
        return next(iter(self.names))

    @property
    def value(self) -> str:
        """What its studies are called by that identifier."""
        return self.names[self.identifier]

    def agrees_with(self, study: StudyIdentity) -> bool:
        """Whether the study is called all that the line says, where its files say anything."""
        return all(not study.names(name) or value in study.names(name) for name, value in self.names.items())


def read_labels(path: Path) -> tuple[tuple[LabelLine, ...], tuple[Finding, ...]]:
    """The usable lines, and a finding for each other one; no message quotes an identifier.

    Raises FindingError if the file is no such table.
    """
    if not path.is_file():
        fix = f"Give a table with the columns label and one of {', '.join(IDENTIFIERS)}."
        message = "it is a folder" if path.is_dir() else "there is no such file"
        raise FindingError(Finding("IMPORT-LABELS", "error", path.name, message, fix))
    header, rows = read_some_columns(path, "label", IDENTIFIERS)
    lines, findings = [], []
    for number, cells in rows:
        try:
            lines.append(_label_line(number, header, cells, path.name))
        except FindingError as error:
            findings.append(error.finding)
    return tuple(lines), tuple(findings)


def label_studies(
    lines: Iterable[LabelLine], studies: Mapping[str, StudyIdentity], case_ids: Mapping[str, str]
) -> tuple[dict[str, Label], tuple[Finding, ...]]:
    """The label of each study, by its key in `studies`, and what is wrong; `case_ids` are their pseudonyms.

    A line that names a study outweighs one that names its patient. Two lines of the same weight that differ
    give no label, no label is good for a study of several patients, and none is given by a line whose
    identifiers belong to different studies, or whose accession number several patients have.
    """
    keys_of: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, study in studies.items():
        for identifier in IDENTIFIERS:
            for name in study.names(identifier):
                keys_of[identifier, name].append(key)
    found: dict[str, dict[str, list[LabelLine]]] = defaultdict(lambda: defaultdict(list))
    unused, findings = [], []
    for line in lines:
        keys = keys_of.get((line.identifier, line.value), [])
        agreeing = [key for key in keys if line.agrees_with(studies[key])]
        if not keys:
            unused.append(line)
        elif not agreeing:
            findings.append(_contradiction(line))
        elif line.identifier == "accession" and _are_of_several_patients(agreeing, studies):
            findings.append(_ambiguous(line, len(agreeing)))
        else:
            for key in agreeing:
                found[key][line.identifier].append(line)
    labels: dict[str, Label] = {}
    findings += [_unused(unused)] if unused else []
    for key, by_identifier in found.items():
        heaviest = next(by_identifier[name] for name in IDENTIFIERS if name in by_identifier)
        if len(studies[key].patient_ids) > 1:
            findings.append(_mixed(len(studies[key].patient_ids), case_ids[key]))
        elif len({line.label for line in heaviest}) == 1:
            labels[key] = heaviest[0].label
        else:
            findings.append(_conflict(heaviest, case_ids[key]))
    return labels, tuple(findings)


def _label_line(number: int, header: list[str], cells: list[str], name: str) -> LabelLine:
    where = f"{name} line {number}"
    if len(cells) != len(header):
        message = f"the line has {len(cells)} cells, the header has {len(header)}"
        raise _bad(where, message, "Put cells that hold a comma in quotes; leave empty cells between commas.")
    row = dict(zip(header, cells, strict=True))
    if row["label"] not in list(Label):
        known = nearest(row["label"], list(Label), cutoff=0.3)
        message = f"the label is neither {' nor '.join(Label)}{known}"
        raise _bad(f"{where}, column label", message, f"Write {' or '.join(Label)}, or remove the line.")
    names = {identifier: row[identifier] for identifier in IDENTIFIERS if row.get(identifier)}
    if not names:
        raise _bad(where, "no cell says whom the label is for", "Fill in one identifier, or remove the line.")
    for identifier, value in names.items():
        hidden = hidden_characters(value)
        if hidden:
            message = f"the cell holds the invisible character {hidden}"
            raise _bad(f"{where}, column {identifier}", message, "Remove it.")
    return LabelLine(number, Label(row["label"]), names)


def _are_of_several_patients(keys: list[str], studies: Mapping[str, StudyIdentity]) -> bool:
    """Whether they are, or may be: a study that names no patient may be anybody's."""
    patients = [studies[key].patient_ids for key in keys]
    return len(keys) > 1 and (not all(patients) or len(frozenset.union(*patients)) > 1)


def _bad(where: str, message: str, fix: str) -> FindingError:
    return FindingError(Finding("IMPORT-LABEL-LINE", "error", where, message, fix))


def _unused(lines: list[LabelLine]) -> Finding:
    numbers = ", ".join(str(line.line) for line in lines[:10]) + (", ..." if len(lines) > 10 else "")
    message = f"{len(lines)} lines name no study of the export: line {numbers}"
    fix = "Export these studies too, or check how the identifiers are written (leading zeros, blanks)."
    return Finding("IMPORT-LABEL-UNUSED", "warning", "labels", message, fix)


def _contradiction(line: LabelLine) -> Finding:
    others = " and ".join(name for name in line.names if name != line.identifier)
    message = f"{others} of the line are not those of the study that its {line.identifier} names"
    fix = f"Correct the line; remove the column {others} if it holds other identifiers than the export."
    return Finding("IMPORT-LABEL-CONTRADICTS", "error", f"labels line {line.line}", message, fix)


def _ambiguous(line: LabelLine, n_studies: int) -> Finding:
    message = f"{n_studies} studies, not all known to be one patient's, have the accession number of the line"
    fix = "Fill in study_uid or patient_id, too; these studies are left out until then."
    return Finding("IMPORT-LABEL-AMBIGUOUS", "error", f"labels line {line.line}", message, fix)


def _mixed(n_patients: int, case_id: str) -> Finding:
    message = f"files of {n_patients} patients say that they belong to this one study"
    fix = "Export each patient's study under its own StudyInstanceUID; the study is left out until then."
    return Finding("IMPORT-MIXED-PATIENTS", "error", "the study", message, fix, case_id)


def _conflict(lines: list[LabelLine], case_id: str) -> Finding:
    told = ", ".join(f"line {line.line} {line.label}" for line in lines)
    fix = "Keep the line that is right; the study is left out until then."
    return Finding(
        "IMPORT-LABEL-CONFLICT", "error", "labels", f"two labels for one study: {told}", fix, case_id
    )
