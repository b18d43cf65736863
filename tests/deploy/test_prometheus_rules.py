"""The alerts: their own tests by promtool, and what each must have."""

import subprocess
from pathlib import Path

import pytest
import yaml
from debian_programs import debian_program

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "dsan.rules.yml"
TESTS = RULES.with_name("dsan.rules.test.yml")


def alerts() -> list[dict[str, object]]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("arguments", [("check", "rules", RULES.name), ("test", "rules", TESTS.name)])
def test_promtool_passes_the_rules_and_their_tests(arguments: tuple[str, ...]) -> None:
    promtool = debian_program("promtool")
    done = subprocess.run([str(promtool), *arguments], cwd=RULES.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    text = TESTS.read_text()
    assert [rule["alert"] for rule in alerts() if str(rule["alert"]) not in text] == []


def test_every_alert_says_what_happened_and_what_to_do() -> None:
    for rule in alerts():
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]  # type: ignore[call-overload]
        assert rule["labels"]["severity"] in ("info", "warning", "critical")  # type: ignore[index]
