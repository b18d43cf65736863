"""A configuration file is taken whole or refused with every problem named: file, key, value and cure."""

import re
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, ValidationError

from dsan_model.configuration import ConfigurationError, Strict, parse_configuration, read_configuration


class Inner(Strict):
    """A table."""

    width: Annotated[int, Field(gt=0)] = 64
    shape: tuple[int, int] = (1, 2)
    rate: float = 0.5


class Outer(Strict):
    """A file."""

    name: str
    rounds: int = 20
    is_fast: bool = False
    network: Inner = Inner()


def problems_of(path: Path, text: str) -> list[str]:
    """What is wrong with a file of this text."""
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_configuration(path, Outer)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.toml"


def test_a_good_file_is_read_and_what_it_leaves_out_has_the_default(path: Path) -> None:
    path.write_text('name = "a"\nis_fast = true\n[network]\nshape = [3, 4]\nrate = 1\n')
    assert read_configuration(path, Outer) == Outer(
        name="a", is_fast=True, network=Inner(shape=(3, 4), rate=1.0)
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("ruonds = 3", "unknown key 'ruonds'; did you mean 'rounds'?"),
        ("[netwrok]", "unknown key 'netwrok'; did you mean 'network'?"),
        ("[network]\nwdith = 3", "unknown key 'network.wdith'; did you mean 'width'?"),
        ("zzz = 3", "unknown key 'zzz'; known here: name, rounds, is_fast, network"),
        ("[network]\nzzz = 3", "unknown key 'network.zzz'; known here: width, shape, rate"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_known_one(path: Path, line: str, problem: str) -> None:
    assert problems_of(path, f'name = "a"\n{line}\n') == [f"{path}: {problem}"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('rounds = "3"', r"key 'rounds': .*valid integer.*\(found '3'\)"),
        ("rounds = 3.0", r"key 'rounds': .*integer.*\(found 3.0\)"),
        ("rounds = true", r"key 'rounds': .*valid integer.*\(found True\)"),
        ("is_fast = 1", r"key 'is_fast': .*valid boolean.*\(found 1\)"),
        ("network = 3", r"key 'network': .*\(found 3\)"),
        ("[network]\nwidth = 0", r"key 'network.width': .*greater than 0 \(found 0\)"),
        ("[network]\nshape = [1, 2, 3]", r"key 'network.shape.*': .*"),
        ('[network]\nshape = [1, "b"]', r"key 'network.shape.1': .*valid integer.*\(found 'b'\)"),
        ("[network]\nrate = nan", r"key 'network.rate': .*finite number"),
        ("[network]\nrate = inf", r"key 'network.rate': .*finite number"),
        ("rounds = 2020-04-09", r"key 'rounds': .*valid integer.*\(found '2020-04-09'\)"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(path: Path, line: str, problem: str) -> None:
    (found,) = problems_of(path, f'name = "a"\n{line}\n')
    assert found.startswith(f"{path}: ")
    assert re.search(problem, found), found


def test_a_missing_key_is_named(path: Path) -> None:
    assert problems_of(path, "rounds = 3\n") == [f"{path}: key 'name' is missing"]


def test_all_problems_of_a_file_are_told_together(path: Path) -> None:
    found = problems_of(path, 'rounds = "3"\nzzz = 1\n[network]\nwidth = -1\n')
    assert len(found) == 4
    assert all(problem.startswith(f"{path}: ") for problem in found)


def test_a_file_that_is_not_toml_says_where(path: Path) -> None:
    (found,) = problems_of(path, 'name = "a\n')
    assert found.startswith(f"{path}: not TOML: ")
    assert "line 1" in found


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such file"):
        read_configuration(path, Outer)


@pytest.mark.parametrize("content", [b'name = "\xff"', None], ids=["not UTF-8", "a folder"])
def test_a_file_that_cannot_be_read_as_text_says_so(path: Path, content: bytes | None) -> None:
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match="cannot be read as UTF-8 text"):
        read_configuration(path, Outer)


def test_a_table_from_elsewhere_names_its_source() -> None:
    with pytest.raises(ConfigurationError, match="preset demo: unknown key 'nam'; did you mean 'name'"):
        parse_configuration({"name": "a", "nam": 1}, Outer, "preset demo")


def test_a_configuration_cannot_be_changed() -> None:
    configuration = Outer(name="a")
    with pytest.raises(ValidationError, match="frozen"):
        configuration.rounds = 3  # type: ignore[misc]
