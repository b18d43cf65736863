"""A hostile site: a real ClientApp that trains like any other and answers with garbage, another kind a round.

`DSAN_HOSTILE` names the site whose replies it spoils. Nothing of this is used outside of simulations.
`python -m simulation.hostile` is the `flwr-clientapp` of such a site in a deployment.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supernode.cli import flwr_clientapp

from client.app import app as honest_app
from client.clientapp_program import SITE_VARIABLE
from client.installed_code import BundleGate
from dsan_model.protocol import Refusal, RoundReply, decode, encode
from dsan_model.traffic import PackedWeights

HOSTILE_VARIABLE = "DSAN_HOSTILE"
Head = dict[str, Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Parts:
    """A reply taken apart: its head, its arrays, and the reply of the round before."""

    head: Head
    arrays: Arrays
    former: RecordDict | None

    @property
    def fields(self) -> Head:
        """The plain fields."""
        fields: Head = self.head["fields"]
        return fields

    @property
    def training(self) -> Head:
        """What it says of the training of US."""
        training: Head = self.fields["training"]["us"]
        return training

    @property
    def update(self) -> Head:
        """How the update of US is to be read."""
        update: Head = self.head["updates"]["branches"]["us"]
        return update

    def record(self) -> RecordDict:
        """The reply put together again, with digests that fit, so that only what was spoilt is wrong."""
        return _record(json.dumps(self.head), self.arrays)

    def change_floats(self, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> RecordDict:
        """With other floats in the update of US, and a digest that fits them."""
        reply = decode(self.record(), RoundReply)
        assert isinstance(reply, RoundReply)
        (us, update) = next(iter(reply.updates.items()))
        floats = change(update.floats.copy()).astype(update.floats.dtype)
        return self._with_update(reply, us, update, floats=floats)

    def _with_update(
        self, reply: RoundReply, branch: Any, update: PackedWeights, **changes: Any
    ) -> RecordDict:
        values = {name: getattr(update, name) for name in PackedWeights.__dataclass_fields__} | changes
        updates = {**reply.updates, branch: PackedWeights(**values)}
        return encode(
            RoundReply(reply.site, reply.round, dict(reply.training), dict(reply.validation), updates)
        )

    def change_update(self, **changes: Callable[[PackedWeights], Any]) -> RecordDict:
        """With other parts of the update of US, each made from the honest one."""
        reply = decode(self.record(), RoundReply)
        assert isinstance(reply, RoundReply)
        (us, update) = next(iter(reply.updates.items()))
        return self._with_update(reply, us, update, **{k: make(update) for k, make in changes.items()})


Kind = Callable[[Parts], RecordDict]


def _record(head: str | bytes, arrays: Arrays) -> RecordDict:
    return RecordDict({"head": ConfigRecord({"json": head}), "arrays": ArrayRecord(arrays)})


def _set(place: Callable[[Parts], Head], **values: object) -> Kind:
    """The kind that only sets keys somewhere in the head."""

    def spoil(parts: Parts) -> RecordDict:
        place(parts).update(values)
        return parts.record()

    return spoil


def _filled(value: float) -> Kind:
    def spoil(parts: Parts) -> RecordDict:
        def put(floats: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            floats[::7] = value
            return floats

        return parts.change_floats(put)

    return spoil


def _counts(value: int, *, cells: int = 1) -> Kind:
    def spoil(parts: Parts) -> RecordDict:
        counts = np.frombuffer(parts.arrays["validation/us"].data, np.int64).copy()
        counts[:cells] = value
        parts.arrays["validation/us"] = _array(counts)
        return parts.record()

    return spoil


def _array(values: np.ndarray[Any, Any]) -> Array:
    return Array(dtype=str(values.dtype), shape=values.shape, stype="flat", data=values.tobytes())


def _other_classes(parts: Parts) -> RecordDict:
    counts = np.frombuffer(parts.arrays["validation/us"].data, np.int64).reshape(2, 3, 258).copy()
    parts.arrays["validation/us"] = _array(counts[::-1].copy().ravel())
    return parts.record()


def _larger_exponents(update: PackedWeights) -> tuple[int, ...]:
    return tuple(exponent + 12 for exponent in update.exponents)


def _longer_layout(parts: Parts, change: Callable[[list[Any]], object]) -> RecordDict:
    change(parts.head["layouts"][0])
    return parts.record()


def _raise(parts: Parts) -> RecordDict:
    raise RuntimeError("/data/patients/of/the/site")


def _replay(parts: Parts) -> RecordDict:
    assert parts.former is not None
    return parts.former


KINDS: dict[str, Kind] = {
    "NaN in the update": _filled(float("nan")),
    "infinite values": _filled(float("inf")),
    "an update 4096 times as large": lambda p: p.change_update(exponents=_larger_exponents),
    "values that overflow": lambda p: p.change_update(exponents=lambda u: (126,) * len(u.exponents)),
    "an absurd exponent": lambda p: p.change_update(exponents=lambda u: (10**9,) * len(u.exponents)),
    "counters below 0": lambda p: p.change_update(integers=lambda u: u.integers - 10**6),
    "a value changed on the way": lambda p: _torn(p),
    "too few values": lambda p: _cut(p, 2),
    "half a value": lambda p: _cut(p, 1),
    "another shape": lambda p: _longer_layout(p, lambda layout: layout[2].__setitem__(-1, [3, 5])),
    "a tensor renamed": lambda p: _longer_layout(p, lambda layout: layout[0].__setitem__(0, "fc.evil")),
    "a tensor missing": lambda p: _longer_layout(p, lambda layout: [column.pop() for column in layout]),
    "float64": lambda p: _dtype(p, "float64"),
    "pickled objects": lambda p: _dtype(p, "object"),
    "another site's name": _set(lambda p: p.fields, site="hospital-1"),
    "a name with a path": _set(lambda p: p.fields, site="../../centre"),
    "another round": _set(lambda p: p.fields, round=1_000_000),
    "the reply of the round before": _replay,
    "a branch missing": lambda p: _without(p, "us"),
    "a branch of no study": lambda p: _renamed(p),
    "more cases than enrolled": _set(lambda p: p.training, cases=10**6),
    "cases below 0": _set(lambda p: p.training, cases=-20),
    "no cases": _set(lambda p: p.training, cases=0),
    "draws that do not add up": _set(lambda p: p.training["drawn"], **{"small CAP": 10**6}),
    "no steps": _set(lambda p: p.training, steps=0),
    "endless training": _set(lambda p: p.training, seconds=1e300),
    "an absurd loss": _set(lambda p: p.training, classification_loss=1e308),
    "text for a number": _set(lambda p: p.training, steps="many"),
    "a field too many": _set(lambda p: p.fields, admin=True),
    "counts below 0": _counts(-1),
    "an absurd histogram": _counts(10**15),
    "more cases validated": _counts(7, cells=40),
    "the classes exchanged": _other_classes,
    "NaN in the head": lambda p: _record(json.dumps(p.head).replace("0.", "NaN0.", 1), p.arrays),
    "a head that is no JSON": lambda p: _record("{'message': ", p.arrays),
    "a head nested 100 000 deep": lambda p: _record("[" * 100_000, p.arrays),
    "a head that is not UTF-8": lambda p: _record(b"\xff\xfe{}", p.arrays),
    "half a surrogate": lambda p: _record(json.dumps(p.head | {"\ud800": 1}), p.arrays),
    "nothing at all": lambda p: RecordDict(),
    "a part that no message has": lambda p: RecordDict({**p.record(), "more": ConfigRecord({"x": 1})}),
    "a message of 64 MB": lambda p: _record(
        json.dumps(p.head), {**p.arrays, "more": _array(np.zeros(1 << 23))}
    ),
    "another protocol": _set(lambda p: p.head, protocol=99),
    "another message": _set(lambda p: p.head, message="EvaluateReply"),
    "a refusal without a code": lambda p: encode(Refusal("hospital-1", "<b>sorry</b>", "x" * 10**6)),
    "an exception": _raise,
}


def _torn(parts: Parts) -> RecordDict:
    data = bytearray(parts.arrays["updates/us/floats"].data)
    data[len(data) // 2] ^= 1
    return _with_data(parts, bytes(data))


def _cut(parts: Parts, n_bytes: int) -> RecordDict:
    return _with_data(parts, parts.arrays["updates/us/floats"].data[:-n_bytes])


def _with_data(parts: Parts, data: bytes) -> RecordDict:
    old = parts.arrays["updates/us/floats"]
    parts.arrays["updates/us/floats"] = Array(dtype=old.dtype, shape=old.shape, stype=old.stype, data=data)
    return parts.record()


def _dtype(parts: Parts, dtype: str) -> RecordDict:
    old = parts.arrays["updates/us/floats"]
    parts.arrays["updates/us/floats"] = Array(dtype=dtype, shape=old.shape, stype=old.stype, data=old.data)
    return parts.record()


def _without(parts: Parts, branch: str) -> RecordDict:
    for place in (parts.head["updates"]["branches"], parts.head["validation"]["branches"]):
        del place[branch]
    del parts.fields["training"][branch]
    return parts.record()


def _renamed(parts: Parts) -> RecordDict:
    branches = parts.head["updates"]["branches"]
    branches["them"] = branches.pop("us")
    return parts.record()


app = ClientApp()


def _is_hostile(context: Context) -> bool:
    return Path(str(context.node_config["site-config"])).parent.name == os.environ.get(HOSTILE_VARIABLE)


@app.query("describe")
@app.evaluate("models")
@app.evaluate("fit_ensemble")
@app.evaluate("explain")
def as_an_honest_site(message: Message, context: Context) -> Message:
    """What is not spoilt."""
    return honest_app(message, context)


@app.train("round")
def train_round(message: Message, context: Context) -> Message:
    """Train; the hostile site then spoils the reply, in round n with the n-th kind."""
    reply = honest_app(message, context)
    if not _is_hostile(context):
        return reply
    head = json.loads(str(reply.content.config_records["head"]["json"]))
    number = int(head["fields"]["round"])
    kept = Path(str(context.node_config["site-config"])).parent / "work" / "former"
    former = _read_record(kept)
    _write_record(kept, reply.content)
    parts = Parts(head, dict(reply.content.array_records["arrays"]), former)
    spoil = list(KINDS.values())[(number - 1) % len(KINDS)]
    return Message(spoil(parts), reply_to=message)


def _write_record(folder: Path, record: RecordDict) -> None:
    """Keep a reply for the replay: one process answers one message."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = record.array_records["arrays"]
    index = [[name, a.dtype, list(a.shape), a.stype] for name, a in arrays.items()]
    (folder / "head.json").write_text(
        json.dumps([str(record.config_records["head"]["json"]), index]), encoding="utf-8"
    )
    for number, array in enumerate(arrays.values()):
        (folder / f"{number:03d}").write_bytes(array.data)


def _read_record(folder: Path) -> RecordDict | None:
    if not (folder / "head.json").exists():
        return None
    head, index = json.loads((folder / "head.json").read_text(encoding="utf-8"))
    arrays = {
        name: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=(folder / f"{n:03d}").read_bytes())
        for n, (name, dtype, shape, stype) in enumerate(index)
    }
    return _record(head, arrays)


def main() -> None:
    """Answer one message over a real SuperNode; whoever owns the site can start what he likes."""
    os.environ[HOSTILE_VARIABLE] = Path(os.environ[SITE_VARIABLE]).parent.name
    BundleGate(lambda: app, lambda reason: app).close()
    flwr_clientapp()


if __name__ == "__main__":
    main()
