"""A hospital's daemon and its processes are killed again and again while a study runs over TLS.

    python benchmarks/site_kills.py --kills 10 --seed 1
    python benchmarks/site_kills.py --kills 0 --stopped 120 --rounds 12
    python benchmarks/site_kills.py --kills 0 --away 600 --rounds 12

A centre and two hospitals, which both train, as in kills.py. At random moments one of daemon, SuperNode,
SuperExec and ClientApp of the first one gets SIGKILL; a daemon is started again at once, as systemd would.
`--stopped S` holds all its processes with SIGSTOP for S seconds before that, `--away S` then ends the centre
for S seconds.

Printed: every kill with the phase that it hit, whether the study was completed, whether its weights are
those of an undisturbed study bit for bit, and how many finished results were trained again (expected: 0).
A SuperNode that was killed is back after 70 s at the earliest, so ten kills take some 10 to 20 minutes; fewer
than were asked for count as a failure.
"""

import argparse
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGCONT, SIGSTOP

from kills import CENTRE, Deployment, has_completed, reference, signal_all, weights

from client.daemon_status import read_status
from simulation.federation import Federation, stopped_at_the_end

TARGETS = ("daemon", "supernode", "superexec", "fork-server", "clientapp")
FOR_A_CLIENTAPP_S = 30.0  # there is one for some seconds of each message
SITE = "hospital-1"


def main() -> int:
    """Run, print, and answer 0 if everything is as expected."""
    options = _options()
    folder = options.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    study, expected = reference(folder, 2, options.rounds)
    hospitals = tuple(folder / "hospitals" / site for site in study.sites.training)
    deployment = Deployment(Federation(folder / "federation", hospitals))
    run = deployment.centre / "runs" / study.name
    chance = random.Random(options.seed)
    with stopped_at_the_end(deployment.federation):
        deployment.start()
        deployment.train(study)
        _watch(deployment, lambda: bool(deployment.results.seen))  # the first branch is trained
        if options.stopped:
            _hold_site(deployment, options.stopped)
        if options.away:
            _end_centre_for(deployment, options.away)
        kills = 0
        while kills < options.kills:
            until = time.monotonic() + chance.uniform(5, 60)
            _watch(deployment, lambda: has_completed(run) or time.monotonic() > until)  # noqa: B023  (used here)
            if has_completed(run):
                break
            kills += 1
            print(f"kill {kills}: {_kill(deployment, chance.choice(TARGETS))}", flush=True)
        _watch(deployment, lambda: has_completed(run))
    results, is_equal = deployment.results, weights(run) == expected
    print(f"study complete, weights {'equal' if is_equal else 'DIFFER FROM'} those of the undisturbed study")
    print(f"{len(results.seen)} finished results, {results.trained_again} of them trained again")
    if kills < options.kills:
        print(f"the study was complete after {kills} of {options.kills} kills: give it more --rounds")
    return int(not is_equal or results.trained_again > 0 or kills < options.kills)


def _watch(deployment: Deployment, happened: Callable[[], bool]) -> None:
    """Look at the finished results until it happened."""
    while not happened():
        deployment.results.look()
        time.sleep(0.2)


def _kill(deployment: Deployment, target: str) -> str:
    """SIGKILL to a process of the hospital; what was hit, in words."""
    deadline = time.monotonic() + (FOR_A_CLIENTAPP_S if target == "clientapp" else 0.0)
    pids = deployment.processes(SITE, target)
    while not pids and time.monotonic() < deadline:
        time.sleep(0.2)
        pids = deployment.processes(SITE, target)
    status = read_status(deployment.folder(SITE) / "state")
    phase = status.work.phase if status else "unknown"
    if not pids:
        return f"no {target} to kill while {phase}"
    deployment.kill(SITE, pids)
    if target == "daemon":
        deployment.start_daemon(SITE)
    return f"{target} while {phase}"


def _hold_site(deployment: Deployment, seconds: float) -> None:
    pids = deployment.everything(SITE)
    signal_all(pids, SIGSTOP)
    time.sleep(seconds)
    signal_all(pids, SIGCONT)
    print(f"{len(pids)} processes of {SITE} held for {seconds:.0f} s", flush=True)


def _end_centre_for(deployment: Deployment, seconds: float) -> None:
    process = deployment.federation.daemons[CENTRE]
    process.terminate()
    process.wait()
    until = time.monotonic() + seconds
    _watch(deployment, lambda: time.monotonic() > until)
    deployment.start_daemon(CENTRE)
    print(f"centre away for {seconds:.0f} s", flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--stopped", type=float, default=0.0, help="seconds of SIGSTOP")
    parser.add_argument("--away", type=float, default=0.0, help="seconds without the centre")
    parser.add_argument("--folder", type=Path, default=Path("runs/site-kills"))
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
