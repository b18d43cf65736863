"""Reading a TOML file into a checked, frozen configuration; what is wrong says file, key, value and cure."""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

Configuration = TypeVar("Configuration", bound=BaseModel)


class Strict(BaseModel):
    """A table of a configuration file: frozen, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ConfigurationError(Exception):
    """A configuration file that cannot be used: every problem of it, one a line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def read_configuration(path: Path, kind: type[Configuration]) -> Configuration:
    """The file as `kind`. ConfigurationError names each unknown key with its nearest, each bad value."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
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
        problems = [f"{where}: {_problem(dict(detail), kind)}" for detail in error.errors()]
        raise ConfigurationError(problems) from error


def _as_json(table: dict[str, Any]) -> str:
    # JSON has the types of our TOML files, and pydantic's strict mode reads tuples and enums from it
    return json.dumps(table, default=str)


def _problem(detail: dict[str, Any], kind: type[BaseModel]) -> str:
    location = tuple(str(part) for part in detail["loc"])
    key = ".".join(location)
    if detail["type"] == "extra_forbidden":
        known = _known_keys(kind, location[:-1])
        nearest = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
        return f"unknown key {key!r}; {hint}"
    if detail["type"] == "missing":
        return f"key {key!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"key {key!r}: {message} (found {detail['input']!r})" if key else message


def _known_keys(kind: type[BaseModel], tables: tuple[str, ...]) -> list[str]:
    for table in tables:
        field = kind.model_fields.get(table)
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)
