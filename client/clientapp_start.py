"""Hand the arguments of `flwr-clientapp` to the fork server; exit 1 if it is not there.

`python -I -S clientapp_start.py PIPE ARGUMENTS`, from the script that the daemon wrote. It imports next to
nothing: whatever it took would be paid for every message.
"""

import json
import os
import select
import sys


def main() -> int:
    """The exit status: 0 if the fork server has the arguments."""
    line = json.dumps(sys.argv[2:]).encode() + b"\n"
    if len(line) > select.PIPE_BUF:  # it might be written in parts
        return 1
    try:
        pipe = os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)  # refused if nobody reads
        os.write(pipe, line)
    except OSError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
