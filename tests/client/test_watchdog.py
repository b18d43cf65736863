"""A message that was taken and is not worked on is seen after the times of [daemon], and no earlier."""

from dataclasses import replace

import pytest

from client.site import DaemonTable
from client.watchdog import Work, trouble

LIMITS = DaemonTable(begin_s=300.0, silence_s=3600.0)
IDLE = Work(taken=None, sending=None, pushed=None, contact=None, began=None, is_alive=False, progress=None)
TAKEN = replace(IDLE, taken=1000.0)
AT_WORK = replace(TAKEN, began=1005.0, is_alive=True, progress=1100.0)

SENDING = replace(AT_WORK, is_alive=False, sending=1101.0)


@pytest.mark.parametrize(
    ("work", "now"),
    [
        (IDLE, 1e9),
        (replace(IDLE, began=900.0, progress=950.0), 1e9),
        (TAKEN, 1300.0),
        (replace(TAKEN, began=900.0), 1300.0),  # the process of the message before
        (replace(AT_WORK, progress=None), 4605.0),
        (replace(AT_WORK, progress=900.0), 4605.0),  # the progress of the message before
        (AT_WORK, 4700.0),
        (replace(AT_WORK, is_alive=False), 1400.0),
        (replace(AT_WORK, sending=1101.0, contact=9e8), 1e9),  # its ClientApp still hands it over
        (replace(SENDING, pushed=9e8, contact=9e8 + 300), 1e9),  # a large answer over a thin line
        (replace(SENDING, contact=1400.0), 1e9),  # the centre is away
        (SENDING, 1e9),
    ],
)
def test_what_goes_on_is_left_alone(work: Work, now: float) -> None:
    assert trouble(work, LIMITS, now) is None


@pytest.mark.parametrize(
    ("work", "now", "words"),
    [
        (TAKEN, 1301.0, "no ClientApp began for 301 s"),
        (replace(TAKEN, began=900.0, is_alive=True), 1301.0, "no ClientApp began"),
        (replace(AT_WORK, is_alive=False), 1401.0, "gone without an answer for 301 s"),
        (AT_WORK, 4701.0, "says nothing for 3601 s"),
        (replace(SENDING, contact=1402.0), 1403.0, "no piece of the answer went out for 301 s"),
        (replace(SENDING, pushed=1200.0, contact=1501.0), 1502.0, "went out for 301 s"),
        (replace(AT_WORK, progress=None), 4606.0, "says nothing"),
    ],
)
def test_what_stands_still_is_told_in_words(work: Work, now: float, words: str) -> None:
    found = trouble(work, LIMITS, now)
    assert found is not None
    assert words in found
