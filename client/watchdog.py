"""Is a message that was taken also worked on? Flower does not tell when a ClientApp never began, or hangs."""

from dataclasses import dataclass

from client.site import DaemonTable


@dataclass(frozen=True)
class Work:
    """What is seen of the message in work; times are unix seconds, None: there is none."""

    taken: float | None  # when the SuperNode took a message that it has not answered yet
    sending: float | None  # since when the answer is on its way
    began: float | None  # when the newest process of a ClientApp began
    is_alive: bool  # whether that process is there
    progress: float | None  # when a ClientApp last said how far it is


def trouble(work: Work, limits: DaemonTable, now: float) -> str | None:
    """Why the message in work will not be answered, in words; None if there is nothing to see."""
    if work.taken is None or work.sending is not None:
        return None  # an answer on its way may take hours: Flower tries again for ever
    if work.began is None or work.began < work.taken:
        return _if_longer(now - work.taken, limits.begin_s, "a message was taken and no ClientApp began for")
    silent_s = now - max(work.began, work.progress or 0.0)
    if not work.is_alive:
        return _if_longer(silent_s, limits.begin_s, "the ClientApp is gone without an answer for")
    return _if_longer(silent_s, limits.silence_s, "the ClientApp says nothing for")


def _if_longer(seconds: float, limit_s: float, what: str) -> str | None:
    return f"{what} {seconds:.0f} s (limit {limit_s:.0f} s)" if seconds > limit_s else None
