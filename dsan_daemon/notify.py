"""Telling systemd how a daemon fares (sd_notify): ready, alive, stopping, and one line of status.

Without systemd (no NOTIFY_SOCKET) nothing is sent.
"""

import os
import socket


def notify(message: str) -> bool:
    """Send one message of sd_notify(3), e.g. READY=1; returns whether there was anybody to send it to.

    A socket that is gone is not an error: a daemon does not die of it.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # an abstract socket
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(message.encode(), address)
        except OSError:
            return False
    return True


def notify_ready(status: str) -> bool:
    """The daemon is up; `status` is what `systemctl status` shows."""
    return notify(f"READY=1\nSTATUS={_line(status)}")


def notify_alive(status: str) -> bool:
    """The daemon's loop still turns; call it at least twice in every `watchdog_s`."""
    return notify(f"WATCHDOG=1\nSTATUS={_line(status)}")


def notify_stopping(status: str) -> bool:
    """The daemon was told to end and does."""
    return notify(f"STOPPING=1\nSTATUS={_line(status)}")


def watchdog_s() -> float | None:
    """After how long without `notify_alive` systemd ends this process; None if it does not watch."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    interval_us = os.environ.get("WATCHDOG_USEC", "")
    return int(interval_us) / 1e6 if interval_us.isdecimal() and int(interval_us) else None


def _line(status: str) -> str:
    return " ".join(status.split())
