"""The container files name what is there; no engine is needed to see that."""

import json
import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy" / "container").glob("*.Containerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = ("pyproject.toml", "README.md", "LICENSE", "constraints.txt")  # by pip, in /src


def instructions(file: Path) -> list[tuple[str, str]]:
    lines = re.sub(r"\\\n", " ", file.read_text()).splitlines()
    words = (line.partition(" ") for line in lines if line.strip() and not line.startswith("#"))
    return [(word, rest.strip()) for word, _, rest in words]


def of(file: Path, word: str) -> list[str]:
    return [rest for found, rest in instructions(file) if found == word]


def is_ignored(path: str) -> bool:
    patterns = (
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    )
    return any(fnmatch(path, pattern) for pattern in patterns)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_every_instruction_is_known_and_the_image_is_of_a_python_that_we_support(file: Path) -> None:
    known = {
        "FROM",
        "ARG",
        "RUN",
        "COPY",
        "USER",
        "WORKDIR",
        "VOLUME",
        "EXPOSE",
        "STOPSIGNAL",
        "ENTRYPOINT",
        "CMD",
    }
    assert {word for word, _ in instructions(file)} <= known
    (image,) = of(file, "FROM")
    version = re.fullmatch(r"docker\.io/library/python:3\.(\d+)-slim-\w+", image)
    assert version is not None
    assert int(version[1]) >= int(PROJECT["requires-python"].removeprefix(">=3."))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_copied_and_installed_is_in_the_checkout_and_not_left_out(file: Path) -> None:
    assert of(file, "COPY") == [". /src"]
    named = set(re.findall(r"/src/([\w./-]+)", " ".join(of(file, "RUN"))))
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for path in {*NEEDED, *named, *packages}:
        assert (ROOT / path).exists()
        assert not is_ignored(path), path
    assert is_ignored(".venv")
    assert is_ignored("runs")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_runs_our_command_as_a_user_who_is_not_root_and_is_told_to_leave_by_sigterm(file: Path) -> None:
    (program,) = json.loads(of(file, "ENTRYPOINT")[0])
    assert program in PROJECT["scripts"]
    assert json.loads(of(file, "CMD")[0])[0] == "start"
    assert of(file, "USER") == [program]
    assert f"useradd --system --uid 1000{'2' if program == 'dsan-client' else '1'}" in " ".join(
        of(file, "RUN")
    )
    assert of(file, "STOPSIGNAL") == ["SIGTERM"]
