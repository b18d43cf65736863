"""`dsan-server init`: a new centre, with settings, a study of the paper's values, keys and certificates."""

import ipaddress
import re
from pathlib import Path

from dsan_daemon.files import write_atomically
from dsan_daemon.fingerprints import certificate_fingerprint
from server.centre import Centre
from server.certificates import found_authority
from server.refusals import ExitCode, RefusedError

_HOST = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
)

_SETTINGS = """\
# Settings of this centre. Docs: docs/reference/configuration.md

# The name or address by which the hospitals reach the centre. It stands in the server's certificate:
# after a change, `dsan-server renew`; each site changes [server] address of its site.toml.
host = "{host}"

listen = "0.0.0.0"   # address on which the proxy listens
port = 8443          # the one port that hospitals reach; open it in the firewall, and no other

console_listen = "127.0.0.1"  # page for the operator; elsewhere it asks for the token in state/console.token
console_port = 8444
health_port = 8445   # /healthz, /readyz and /metrics, on 127.0.0.1

nginx = "nginx"      # the proxy's program
log_level = "info"   # debug, info, warning, error
"""

_STUDY = """\
# A study with the paper's values (Ouyang et al., IEEE TMI 2020). Copy it, give it a name, list the sites, and
# start it with `dsan-server train FILE`. Docs: docs/reference/configuration.md

name = "first-study"  # of the run folder, runs/NAME
seed = 0              # decides initial weights, folds and every draw
rounds = 20           # federated rounds of `local_epochs` each
folds = 5             # patient-level parts of every site's cases
fold = 0              # the part that validates
baseline = false      # train RN34 + US (without attention loss) too

[sites]
training = []         # names of enrolled sites that must train; none named: all that are connected
held_out = []         # names of enrolled sites that only evaluate the finished models

[input]
shape_dhw = [138, 256, 256]  # grid of a prepared volume (IV-B)
antialias = false            # only for grids far below the paper's

[network]             # 3D ResNet-34 (III-A)
blocks = [3, 4, 6, 3]
width = 64
stem_kernel = 7
stem_pool = true
standardise_input = false

[training]            # IV-C
optimiser = "adam"
learning_rate = 2e-4
weight_decay = 1e-4
decay_every_epochs = 5
decay_factor = 0.1
batch_size = 20
local_epochs = 1
attention_weight = 0.5  # lambda of Eq. 4
flips = false

[aggregation]
proximal_mu = 0.0     # FedProx; 0: federated averaging
server_momentum = 0.0 # FedAvgM

[traffic]
precision = "float16" # in which weights travel, what is lost kept for the next round; or "float32"

[plan]
kind = "single"       # or "k-fold", "leave-one-site-out"; "evaluate" tests [start] model without training

[start]
model = ""            # a model package to start from, relative to this file; "": untrained networks

[participation]
deadline_h = 12.0     # hours that a round waits for a site
quorum = 0            # training sites that a round needs; 0: all
largest_relative_update = 10.0  # norm of an update over that of the weights; a larger one is rejected
"""


def found_centre(folder: Path, host: str) -> str:
    """Write a centre's folder; returns the fingerprint of its authority.

    Raises RefusedError CENTRE-HOST or CENTRE-EXISTS; nothing that is there is overwritten.
    """
    _require_host(host)
    centre = Centre(folder.resolve())
    for path in (centre.settings, centre.study, centre.tls):
        if path.exists():
            raise RefusedError(
                "CENTRE-EXISTS",
                str(path),
                "a centre is here already, and its keys are not written over",
                "Give another --dir.",
                ExitCode.BAD_CONFIGURATION,
            )
    for part in (centre.folder, centre.sites, centre.runs):
        part.mkdir(parents=True, exist_ok=True)
    found_authority(centre.tls, host)
    write_atomically(centre.study, _STUDY.encode())
    write_atomically(centre.settings, _SETTINGS.format(host=host).encode())
    return authority_fingerprint(centre)


def authority_fingerprint(centre: Centre) -> str:
    """SHA-256 of the authority's certificate: what operator and site compare by telephone."""
    return certificate_fingerprint((centre.tls / "ca.crt").read_bytes())


def _require_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        if _HOST.fullmatch(host) is None:
            raise RefusedError(
                "CENTRE-HOST",
                "--host",
                f"{host!r} is neither a DNS name nor an IP address",
                "Give the name by which hospitals reach this computer, without a scheme and a port.",
                ExitCode.BAD_CONFIGURATION,
            ) from None
