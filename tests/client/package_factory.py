"""Bad model packages, each with its code: used by the test of their reader and by the table of bad input."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from cohort_factory import seal, write_package

from dsan_model.sampling import Branch
from dsan_model.weights import flatten, load_weights, save_weights

SMALL = {"blocks": [1, 1, 1, 1], "width": 2, "stem_kernel": 3, "stem_pool": False}


@dataclass(frozen=True)
class BadPackage:
    """A way to spoil a good package of three branches, which must be refused with `code`."""

    name: str
    code: str
    spoil: Callable[[Path], object]

    def write(self, folder: Path) -> Path:
        """The spoilt package, in a new folder."""
        self.spoil(write_package(folder))
        return folder


def edit(folder: Path, **changes: object) -> None:
    """Change model.json and seal the package again, as who wrote it wrongly would."""
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    seal(folder)


def flip_a_bit(path: Path) -> None:
    """Of the third byte from the end."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def _edited(name: str, code: str, **changes: object) -> BadPackage:
    return BadPackage(name, code, lambda folder: edit(folder, **changes))


def _unlisted(folder: Path) -> None:
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(line for line in sums.read_text().splitlines(True) if "us.safe" not in line))


def _other_branch(folder: Path) -> None:
    (folder / "us.safetensors").write_bytes((folder / "ss.safetensors").read_bytes())
    seal(folder)


def _not_finite(folder: Path) -> None:
    """A sealed package whose digests are right and whose weights are not."""
    path = folder / "us.safetensors"
    state = load_weights(path).state_dict()
    state["fc.bias"] = torch.full_like(state["fc.bias"], float("nan"))
    weights = flatten(state)
    save_weights(path, weights)
    table = json.loads((folder / "model.json").read_text())
    table["branches"]["us"]["digest"] = weights.digest
    edit(folder, branches=table["branches"])


def _cut(folder: Path) -> None:
    path = folder / "us.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    seal(folder)


def _pickled(folder: Path) -> None:
    (folder / "us.safetensors").write_bytes(b"\x80\x04}\x94\x8c\x02fc\x94K\x01s.")
    seal(folder)


ENSEMBLE = {"band": [0.001, 0.030], "w_inside": 0.96, "w_outside": 0.35}

BAD_PACKAGES = (
    *(
        BadPackage(
            f"a flipped bit in {name}", "MODEL-DAMAGED", lambda folder, name=name: flip_a_bit(folder / name)
        )
        for name in ("model.json", *(f"{branch}.safetensors" for branch in (Branch.US, Branch.SS)))
    ),
    BadPackage(
        "a lost branch",
        "MODEL-DAMAGED",
        lambda folder: (folder / "us.safetensors").rename(folder / "x.safetensors"),
    ),
    BadPackage("a branch that nobody vouches for", "MODEL-DAMAGED", _unlisted),
    BadPackage("no checksums", "MODEL-MISSING", lambda folder: (folder / "SHA256SUMS").unlink()),
    BadPackage("no package", "MODEL-MISSING", lambda folder: [path.unlink() for path in folder.iterdir()]),
    _edited("a format of tomorrow", "MODEL-FORMAT", format_version=2),
    _edited("the other class positive", "MODEL-FORMAT", positive="CAP"),
    _edited("half an ensemble", "MODEL-FORMAT", ensemble={"band": [0.001, 0.03], "w_inside": 0.96}),
    *(
        _edited(f"an ensemble weight of {weight}", "MODEL-FORMAT", ensemble=ENSEMBLE | {"w_inside": weight})
        for weight in (7.0, -0.1, float("nan"))
    ),
    _edited("no branch", "MODEL-FORMAT", branches={}),
    _edited("a network of negative width", "MODEL-FORMAT", network=SMALL | {"width": -3}),
    _edited("a network without blocks", "MODEL-FORMAT", network=SMALL | {"blocks": [0, 0, 0, 0]}),
    _edited("a kernel of no side", "MODEL-FORMAT", network=SMALL | {"stem_kernel": 0}),
    _edited("volumes of no side", "MODEL-FORMAT", input={"shape_dhw": [0, 0, 0], "antialias": False}),
    _edited("an unknown part of the network", "MODEL-FORMAT", network=SMALL | {"new": 1}),
    _edited("a wider network", "MODEL-WEIGHTS", network=SMALL | {"width": 4}),
    _edited("a deeper network", "MODEL-WEIGHTS", network=SMALL | {"blocks": [1, 2, 1, 1]}),
    _edited("another recipe", "MODEL-RECIPE", recipe_digest="0" * 64),
    _edited("another input", "MODEL-RECIPE", input={"shape_dhw": [14, 22, 24], "antialias": False}),
    _edited("another band", "MODEL-RECIPE", ensemble=ENSEMBLE | {"band": [0.002, 0.03]}),
    BadPackage("weights of another branch", "MODEL-WEIGHTS", _other_branch),
    BadPackage("weights that are NaN", "MODEL-WEIGHTS", _not_finite),
    BadPackage("weights cut off", "MODEL-WEIGHTS", _cut),
    BadPackage("pickled weights", "MODEL-WEIGHTS", _pickled),
)
