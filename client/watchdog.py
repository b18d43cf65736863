"""Is a message that was taken also worked on? Flower does not tell when a ClientApp never began, or hangs."""

from dataclasses import dataclass

from client.site import DaemonTable


@dataclass(frozen=True)
class Work:
    """What is seen of the message in work; times are unix seconds, None: there is none."""

    taken: float | None  # when the SuperNode took a message that it has not answered yet
    sending: float | None  # since when the answer is on its way
    pushed: float | None  # when the centre last took a piece of it
    contact: float | None  # when the centre last answered anything
    began: float | None  # when the newest process of a ClientApp began
    is_alive: bool  # whether that process is there
    progress: float | None  # when a ClientApp last said how far it is


def trouble(work: Work, limits: DaemonTable, now: float) -> str | None:
    """Why the message in work will not be answered, in words; None if there is nothing to see."""
    if work.taken is None:
        return None
    if work.sending is not None:
        return _stalled(work, work.sending, limits)
    if work.began is None or work.began < work.taken:
        return _if_longer(now - work.taken, limits.begin_s, "a message was taken and no ClientApp began for")
    silent_s = now - max(work.began, work.progress or 0.0)
    if not work.is_alive:
        return _if_longer(silent_s, limits.begin_s, "the ClientApp is gone without an answer for")
    return _if_longer(silent_s, limits.silence_s, "the ClientApp says nothing for")


def _stalled(work: Work, sending: float, limits: DaemonTable) -> str | None:
    """An answer on its way may take hours, and a centre that is away is tried again for ever.

    But a SuperNode waits without an end for pieces that a ClientApp which was killed never handed over.
    """
    if work.is_alive or work.contact is None:
        return None
    standing_s = work.contact - max(sending, work.pushed or 0.0)
    words = "the ClientApp is gone, the centre is there, and no piece of the answer went out for"
    return _if_longer(standing_s, limits.begin_s, words)


def _if_longer(seconds: float, limit_s: float, what: str) -> str | None:
    return f"{what} {seconds:.0f} s (limit {limit_s:.0f} s)" if seconds > limit_s else None
