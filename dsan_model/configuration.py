"""Reading a TOML file into a checked, frozen configuration; what is wrong says file, key, value and cure."""

import difflib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

MOMENT = "date or time"
Configuration = TypeVar("Configuration", bound=BaseModel)


class Strict(BaseModel):
    """A table of a configuration file: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ConfigurationError(Exception):
    """A configuration file that cannot be used: every problem of it, one a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a table."""

    kind: Literal["unknown", "missing", "value"]
    place: tuple[str | int, ...]  # ("recipe", "shape_dhw", 1)
    found: Any  # of a value
    reason: str  # of a value: what it may be
    nearest: str | None  # of an unknown key
    known: tuple[str, ...]  # of an unknown key: what its table may hold

    @property
    def key(self) -> str:
        """As it is written: recipe.shape_dhw[1]."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.place)
        return "".join(parts).removeprefix(".")


def load_toml(path: Path) -> dict[str, Any]:
    """The file's tables; OSError, UnicodeDecodeError, or TOMLDecodeError (its text has line and column)."""
    return tomllib.loads(path.read_bytes().decode("utf-8-sig"))


def problems_of(error: ValidationError, kind: type[BaseModel]) -> list[Problem]:
    """What pydantic found wrong with a table of this kind, keys that are misspelt first."""
    problems = [_problem(detail, kind) for detail in error.errors()]
    return sorted(problems, key=lambda problem: problem.kind != "unknown")  # misspelt is also missing


def read_configuration(path: Path, kind: type[Configuration]) -> Configuration:
    """The file as `kind`. ConfigurationError names each unknown key with its nearest, each bad value."""
    try:
        table = load_toml(path)
    except FileNotFoundError:
        raise ConfigurationError([f"{path}: there is no such file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"{path}: cannot be read as UTF-8 text: {error}"]) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError([f"{path}: not TOML: {error}"]) from error
    return parse_configuration(table, kind, str(path))


def parse_configuration(table: dict[str, Any], kind: type[Configuration], where: str) -> Configuration:
    """A table that was read already; `where` names its source in errors."""
    try:
        return kind.model_validate_json(_as_json(table))
    except ValidationError as error:
        raise ConfigurationError([f"{where}: {_text(p)}" for p in problems_of(error, kind)]) from error


def _as_json(table: dict[str, Any]) -> str:
    # JSON has the types of our TOML files, and pydantic's strict mode reads tuples and enums from it
    return json.dumps(table, default=_not_ours)


def _not_ours(value: object) -> dict[str, str]:
    """A date or time of TOML as what no key takes, so that it is refused and shown."""
    return {MOMENT: str(value)}


def _problem(detail: ErrorDetails, kind: type[BaseModel]) -> Problem:
    place = detail["loc"]
    if detail["type"] == "extra_forbidden":
        known = _known_keys(kind, place[:-1])
        nearest = difflib.get_close_matches(str(place[-1]), known, n=1, cutoff=0.5)
        return Problem("unknown", place, None, "", nearest[0] if nearest else None, known)
    if detail["type"] == "missing" and isinstance(place[-1], str):
        return Problem("missing", place, None, "", None, ())
    is_table = detail["type"] == "model_type"
    reason = "it must be a table" if is_table else detail["msg"].removeprefix("Value error, ")
    found = detail["input"]
    is_moment = isinstance(found, dict) and found.keys() == {MOMENT}
    return Problem("value", place, found[MOMENT] if is_moment else found, reason, None, ())


def _text(problem: Problem) -> str:
    key = ".".join(str(part) for part in problem.place)
    if problem.kind == "unknown":
        known = ", ".join(problem.known)
        hint = f"did you mean {problem.nearest!r}?" if problem.nearest else f"known here: {known}"
        return f"unknown key {key!r}; {hint}"
    if problem.kind == "missing":
        return f"key {key!r} is missing"
    return f"key {key!r}: {problem.reason} (found {problem.found!r})" if key else problem.reason


def _known_keys(kind: type[BaseModel], tables: tuple[int | str, ...]) -> tuple[str, ...]:
    for table in tables:
        field = kind.model_fields.get(str(table))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return ()
        kind = annotation
    return tuple(kind.model_fields)
