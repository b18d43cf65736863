"""Bad lists of cases, settings and lists of labels, each with its code: used by the tests of their readers
and by the table of bad input."""

from dataclasses import dataclass
from datetime import date, timedelta

from client.cohort import COLUMNS

HEADER = ",".join(COLUMNS)
NEXT_WEEK = date.today() + timedelta(days=7)
GOOD = "good,p0,CAP,ct/good.nii.gz,,,,,,"


@dataclass(frozen=True)
class BadTable:
    """A file that is no list of cases at all; `says` is part of the message."""

    name: str
    code: str
    says: str
    content: bytes


@dataclass(frozen=True)
class BadLine:
    """A line of a list of cases whose cell in `column` is bad.

    There are files ct/{good,a,b,a_lung,a_infection,b_lung}.nii.gz, folders dicom and ct, outside.nii.gz in
    the folder above, out.nii.gz as a link to it and loop as a link to itself.
    """

    name: str
    line: str
    column: str
    code: str
    says: str


@dataclass(frozen=True)
class BadSettings:
    """A site.toml that must be refused, because of `key`."""

    name: str
    code: str
    text: str
    key: str
    says: str = ""


BAD_TABLES = (
    BadTable("no text", "COHORT-EMPTY-FILE", "empty", b""),
    BadTable("blank lines", "COHORT-EMPTY-FILE", "empty", b" \n\r\n"),
    BadTable("UTF-16", "COHORT-ENCODING", "UTF-16", HEADER.encode("utf-16")),
    BadTable("UTF-16 without a mark", "COHORT-ENCODING", "UTF-16", HEADER.encode("utf-16-le")),
    BadTable(
        "Latin-1",
        "COHORT-ENCODING",
        "0xfc",
        f"{HEADER}\n{GOOD}\nx,M\xfcller,CAP,ct/a.nii.gz,,,,,,".encode("latin-1"),
    ),
    BadTable("semicolons", "COHORT-SEPARATOR", "';'", HEADER.replace(",", ";").encode()),
    BadTable("tabs", "COHORT-SEPARATOR", r"'\t'", HEADER.replace(",", "\t").encode()),
    BadTable(
        "a column missing", "COHORT-COLUMNS", "column label is missing", HEADER.replace(",label", "").encode()
    ),
    BadTable("a column twice", "COHORT-COLUMNS", "column label is there twice", f"{HEADER},label".encode()),
    BadTable(
        "a column misspelt",
        "COHORT-COLUMNS",
        "'lable', which is none",
        HEADER.replace("label", "lable").encode(),
    ),
    BadTable("a column too many", "COHORT-COLUMNS", "column 11 is called 'ward'", f"{HEADER},ward".encode()),
    BadTable(
        "an open quote", "COHORT-QUOTES", "", f'{HEADER}\n{GOOD}\na,"p1,CAP,ct/a.nii.gz,,,,,,\n'.encode()
    ),
    BadTable("a header alone", "COHORT-NO-CASE", "no line", HEADER.encode()),
)

BAD_LINES = (
    BadLine("no case", ",p1,CAP,ct/a.nii.gz,,,,,,", "case_id", "COHORT-EMPTY", "empty"),
    BadLine("no patient", "a,,CAP,ct/a.nii.gz,,,,,,", "patient_id", "COHORT-EMPTY", "empty"),
    BadLine("no label", "a,p1,,ct/a.nii.gz,,,,,,", "label", "COHORT-EMPTY", "empty"),
    BadLine("no image", "a,p1,CAP,,,,,,,", "image", "COHORT-EMPTY", "empty"),
    BadLine(
        "a label in small letters",
        "a,p1,covid-19,ct/a.nii.gz,,,,,,",
        "label",
        "COHORT-LABEL",
        "did you mean COVID-19?",
    ),
    BadLine(
        "a label cut short", "a,p1,COVID,ct/a.nii.gz,,,,,,", "label", "COHORT-LABEL", "did you mean COVID-19?"
    ),
    BadLine("a label of small letters", "a,p1,Cap,ct/a.nii.gz,,,,,,", "label", "COHORT-LABEL", "mean CAP?"),
    BadLine("a label as a number", "a,p1,1,ct/a.nii.gz,,,,,,", "label", "COHORT-LABEL", "'1' is not a label"),
    BadLine("a lost image", "a,p1,CAP,ct/none.nii.gz,,,,,,", "image", "COHORT-MISSING", "ct/none.nii.gz"),
    BadLine(
        "a folder for a mask",
        "a,p1,CAP,ct/a.nii.gz,dicom,,,,,",
        "lung_mask",
        "COHORT-MISSING",
        "no file 'dicom'",
    ),
    BadLine(
        "a lost mask", "a,p1,CAP,ct/a.nii.gz,,ct/none.nii.gz,,,,", "infection_mask", "COHORT-MISSING", "none"
    ),
    BadLine("the folder above", "a,p1,CAP,../outside.nii.gz,,,,,,", "image", "COHORT-PATH", "leads out"),
    BadLine(
        "the folder above, hidden",
        "a,p1,CAP,ct/../../outside.nii.gz,,,,,,",
        "image",
        "COHORT-PATH",
        "leads out",
    ),
    BadLine("a link that leads out", "a,p1,CAP,out.nii.gz,,,,,,", "image", "COHORT-PATH", "leads out"),
    BadLine(
        "a mask by a link that leads out",
        "a,p1,CAP,ct/a.nii.gz,out.nii.gz,,,,,",
        "lung_mask",
        "COHORT-PATH",
        "leads out",
    ),
    BadLine("an absolute path", "a,p1,CAP,/etc/hostname,,,,,,", "image", "COHORT-PATH", "no relative path"),
    BadLine("a drive", "a,p1,CAP,C:/ct/a.nii.gz,,,,,,", "image", "COHORT-PATH", "no relative path"),
    BadLine("backslashes", r"a,p1,CAP,ct\a.nii.gz,,,,,,", "image", "COHORT-PATH", "forward slashes"),
    BadLine("a path too long", f"a,p1,CAP,{'x' * 300},,,,,,", "image", "COHORT-PATH", "cannot be followed"),
    BadLine("a loop of links", "a,p1,CAP,loop/a,,,,,,", "image", "COHORT-PATH", "cannot be followed"),
    BadLine("an age in words", "a,p1,CAP,ct/a.nii.gz,,,old,,,", "age", "COHORT-AGE", "'old'"),
    BadLine("an age as DICOM has it", "a,p1,CAP,ct/a.nii.gz,,,050Y,,,", "age", "COHORT-AGE", "'050Y'"),
    BadLine("121 years", "a,p1,CAP,ct/a.nii.gz,,,121,,,", "age", "COHORT-AGE", "0 to 120"),
    BadLine("a negative age", "a,p1,CAP,ct/a.nii.gz,,,-3,,,", "age", "COHORT-AGE", "'-3'"),
    BadLine("an age that is NaN", "a,p1,CAP,ct/a.nii.gz,,,nan,,,", "age", "COHORT-AGE", "'nan'"),
    BadLine("a sex in words", "a,p1,CAP,ct/a.nii.gz,,,,female,,", "sex", "COHORT-SEX", "'female'"),
    BadLine(
        "a German date", "a,p1,CAP,ct/a.nii.gz,,,,,03.02.2020,", "acquired_on", "COHORT-DATE", "YYYY-MM-DD"
    ),
    BadLine(
        "a date as DICOM has it",
        "a,p1,CAP,ct/a.nii.gz,,,,,20200203,",
        "acquired_on",
        "COHORT-DATE",
        "YYYY-MM-DD",
    ),
    BadLine("30 February", "a,p1,CAP,ct/a.nii.gz,,,,,2020-02-30,", "acquired_on", "COHORT-DATE", "day"),
    BadLine("a CT of 1920", "a,p1,CAP,ct/a.nii.gz,,,,,1920-02-03,", "acquired_on", "COHORT-DATE", "1971"),
    BadLine(
        "a CT of next week", f"a,p1,CAP,ct/a.nii.gz,,,,,{NEXT_WEEK},", "acquired_on", "COHORT-DATE", "today"
    ),
    BadLine(
        "a name too long", f"{'a' * 65},p1,CAP,ct/a.nii.gz,,,,,,", "case_id", "COHORT-LONG", "65 characters"
    ),
    BadLine("an invisible space", "a\u200b,p1,CAP,ct/a.nii.gz,,,,,,", "case_id", "COHORT-CONTROL", "U+200B"),
    BadLine(
        "a colour of the terminal",
        "a,p1\x1b[31m,CAP,ct/a.nii.gz,,,,,,",
        "patient_id",
        "COHORT-CONTROL",
        "U+001B",
    ),
    BadLine("a line break", 'a,"p\n1",CAP,ct/a.nii.gz,,,,,,', "patient_id", "COHORT-CONTROL", "U+000A"),
)

BAD_SHAPES = (  # lines with another number of cells than the header
    BadLine("too few cells", "a,p1,CAP,ct/a.nii.gz", "", "COHORT-CELLS", ""),
    BadLine("too many cells", "a,p1,CAP,ct/a.nii.gz,,,,,,,", "", "COHORT-CELLS", ""),
    BadLine("a line with semicolons", "a;p1;CAP;ct/a.nii.gz;;;;;;", "", "COHORT-CELLS", ""),
)

BAD_TWINS = (  # two lines each that contradict each other
    BadLine(
        "a case twice", "a,p1,CAP,ct/a.nii.gz,,,,,,\na,p2,CAP,ct/b.nii.gz,,,,,,", "", "COHORT-CASE-TWICE", ""
    ),
    BadLine(
        "an image twice",
        "a,p1,CAP,ct/a.nii.gz,,,,,,\nb,p2,CAP,ct/a.nii.gz,,,,,,",
        "",
        "COHORT-FILE-TWICE",
        "",
    ),
    BadLine(
        "a mask twice",
        "a,p1,CAP,ct/a.nii.gz,ct/a_lung.nii.gz,,,,,\nb,p2,CAP,ct/b.nii.gz,ct/a_lung.nii.gz,,,,,",
        "",
        "COHORT-FILE-TWICE",
        "",
    ),
    BadLine(
        "one file for both masks",
        "a,p1,CAP,ct/a.nii.gz,ct/a_lung.nii.gz,ct/a_lung.nii.gz,,,,",
        "",
        "COHORT-FILE-TWICE",
        "",
    ),
)

BAD_SETTINGS = (
    *(
        BadSettings(name, "SITE-KEY", text, key, says)
        for name, text, key, says in (
            ("a key misspelt", 'name = "a"\nchort = "x.csv"', "chort", "Did you mean cohort?"),
            ("the name misspelt", 'nmae = "a"', "nmae", "Did you mean name?"),
            (
                "a key of a table misspelt",
                'name = "a"\n[machine]\nworker = 2',
                "machine.worker",
                "mean workers?",
            ),
            (
                "a key in capitals",
                'name = "a"\n[recipe]\nshape_DHW = [8, 8, 8]',
                "recipe.shape_DHW",
                "Did you mean shape_dhw?",
            ),
            ("a table misspelt", 'name = "a"\n[machines]\nworkers = 2', "machines", "Did you mean machine?"),
            ("a key of nowhere", 'name = "a"\n[machine]\nzzz = 2', "machine.zzz", "Known here are workers"),
            ("the one field that is no key", 'name = "a"\nhome = "/x"', "home", "Remove it."),
        )
    ),
    *(
        BadSettings(name, "SITE-VALUE", text, key, says)
        for name, text, key, says in (
            ("a name with a blank", 'name = "Tongji Hospital"', "name", "'Tongji Hospital'"),
            ("an empty name", 'name = ""', "name", "''"),
            ("a name too long", f'name = "{"a" * 33}"', "name", "a" * 33),
            ("a number for a name", "name = 3", "name", "3"),
            ("an empty path", 'name = "a"\nstore = ""', "store", "''"),
            ("a number as text", 'name = "a"\n[machine]\nworkers = "2"', "machine.workers", "'2'"),
            ("true for a number", 'name = "a"\n[machine]\nworkers = true', "machine.workers", "True"),
            ("a negative number", 'name = "a"\n[machine]\nworkers = -1', "machine.workers", "-1"),
            ("an unknown device", 'name = "a"\n[machine]\ndevice = "gpu"', "machine.device", "'gpu'"),
            (
                "two sides",
                'name = "a"\n[recipe]\nshape_dhw = [138, 256]',
                "recipe.shape_dhw[2]",
                "[138, 256]",
            ),
            ("a side of 4", 'name = "a"\n[recipe]\nshape_dhw = [138, 256, 4]', "recipe.shape_dhw[2]", "4"),
            (
                "a side with a point",
                'name = "a"\n[recipe]\nshape_dhw = [138, 256, 256.0]',
                "recipe.shape_dhw[2]",
                "256.0",
            ),
            ("one for true", 'name = "a"\n[recipe]\nantialias = 1', "recipe.antialias", "1"),
            ("a number for a table", 'name = "a"\nrecipe = 3', "recipe", "3"),
            (
                "a limit that is NaN",
                'name = "a"\n[audit]\nmax_slice_thickness_mm = nan',
                "audit.max_slice_thickness_mm",
                "nan",
            ),
        )
    ),
    BadSettings("no name", "SITE-MISSING", 'cohort = "x.csv"', "name"),
)

BAD_LABEL_TABLES = (  # name, code, text of labels.csv
    ("a label alone", "COHORT-COLUMNS", "label\nCAP\n"),
    ("labels without a header", "COHORT-COLUMNS", "CANARY-17,CAP\n"),
    ("no label", "COHORT-COLUMNS", "patient_id\nP1\n"),
    ("an unknown column", "COHORT-COLUMNS", "label,patient\nCAP,P1\n"),
    ("semicolons between labels", "COHORT-SEPARATOR", "label;patient_id\nCAP;P1\n"),
    ("no text in the labels", "COHORT-EMPTY-FILE", ""),
)
