"""Asking sites over Flower's Grid: real messages to a ClientApp that answers well, badly or late."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from study_terms import STUDY_TERMS

from dsan_model.cases import SizeGroup
from dsan_model.golden_case import GoldenResult
from dsan_model.protocol import (
    DescribeRequest,
    ExplainReply,
    Refusal,
    Request,
    SiteDescription,
    decode,
    encode,
    size_bytes,
)
from server import exchange as exchange_module
from server.exchange import Exchange, Failure, Outcome
from simulation.engines import InProcessGrid

DEADLINE_S = 10.0
SLOW_S = 0.4
SECRET = "/data/patients/Mueller_Anna"

REQUEST = DescribeRequest(STUDY_TERMS)


def description(site: str) -> SiteDescription:
    return SiteDescription(
        site=site,
        versions={},
        recipe_digest="",
        training_groups=dict.fromkeys(SizeGroup, 1),
        validation_groups=dict.fromkeys(SizeGroup, 0),
        demographics=(),
        ratio_histogram={},
        left_out={},
        withheld=(),
        golden_case=GoldenResult("cpu", {}),
        lung_masks={},
        infection_masks={},
    )


def answers(name: str, message: Message) -> Message:
    request = decode(message.content, DescribeRequest)
    assert isinstance(request, DescribeRequest)
    return Message(
        encode(replace(description(name), recipe_digest=request.terms.recipe_digest)), reply_to=message
    )


def refuses(name: str, message: Message) -> Message:
    return Message(encode(Refusal(name, "SITE-RECIPE", "prepare again")), reply_to=message)


def raises(name: str, message: Message) -> Message:
    raise FileNotFoundError(SECRET)


def is_slow(name: str, message: Message) -> Message:
    time.sleep(SLOW_S)
    return answers(name, message)


def answers_garbage(name: str, message: Message) -> Message:
    return Message(RecordDict({"head": ConfigRecord({"json": "{"})}), reply_to=message)


def answers_nothing(name: str, message: Message) -> Message:
    return Message(RecordDict(), reply_to=message)


def answers_another_question(name: str, message: Message) -> Message:
    return Message(encode(ExplainReply(name, 1.0, ())), reply_to=message)


def in_protocol_1(reply: Message) -> Message:
    """The reply as a release before this protocol sends it."""
    head = json.loads(str(reply.content.config_records["head"]["json"]))
    reply.content["head"] = ConfigRecord({"json": json.dumps(head | {"protocol": 1})})
    return reply


def answers_in_protocol_1(name: str, message: Message) -> Message:
    return in_protocol_1(answers(name, message))


def refuses_in_protocol_1(name: str, message: Message) -> Message:
    return in_protocol_1(refuses(name, message))


def fails_in_flower(name: str, message: Message) -> Message:
    return Message(Error(1, SECRET), reply_to=message)


Behaviour = Callable[[str, Message], Message]
BEHAVIOURS: dict[str, Behaviour] = {
    f.__name__: f
    for f in (
        answers,
        refuses,
        raises,
        is_slow,
        answers_garbage,
        answers_nothing,
        answers_another_question,
        answers_in_protocol_1,
        refuses_in_protocol_1,
        fails_in_flower,
    )
}


def client_app() -> ClientApp:
    """A ClientApp whose node configuration says which site it is and how it behaves."""
    app = ClientApp()

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        site = Path(str(context.node_config["site-config"]))
        return BEHAVIOURS[site.stem](site.parent.name, message)

    return app


@pytest.fixture
def connect() -> Iterator[Callable[..., Exchange]]:
    """Makes an exchange with sites of the given behaviour; node 1 is the first one."""
    with ThreadPoolExecutor(4) as pool:

        def connected(deadline_s: float = DEADLINE_S, **behaviours: Behaviour) -> Exchange:
            paths = tuple(Path(site) / f"{how.__name__}.toml" for site, how in behaviours.items())
            exchange = Exchange(InProcessGrid(client_app(), paths, pool), deadline_s)
            exchange.nodes.by_site = {site: node for node, site in enumerate(behaviours, 1)}
            return exchange

        yield connected


def ask(exchange: Exchange) -> list[Outcome[SiteDescription]]:
    return list(exchange.ask(dict.fromkeys(exchange.nodes.by_site, REQUEST), SiteDescription))


def only_failure(outcomes: list[Outcome[SiteDescription]]) -> Failure:
    (outcome,) = outcomes
    assert isinstance(outcome.answer, Failure)
    return outcome.answer


def test_every_site_gets_the_request_and_its_answer_comes_back(connect: Callable[..., Exchange]) -> None:
    outcomes = ask(connect(north=answers, south=answers))
    expected = [replace(description(site), recipe_digest="cd" * 32) for site in ("north", "south")]
    assert [outcome.answer for outcome in outcomes] == expected
    assert [outcome.site for outcome in outcomes] == ["north", "south"]


def test_answers_come_in_the_order_of_the_sites_names_whoever_is_faster(
    connect: Callable[..., Exchange],
) -> None:
    outcomes = ask(connect(west=answers, east=is_slow, north=answers))
    assert [outcome.site for outcome in outcomes] == ["east", "north", "west"]
    assert [o.answer.site for o in outcomes if isinstance(o.answer, SiteDescription)] == [
        "east",
        "north",
        "west",
    ]


def test_sites_work_at_the_same_time(connect: Callable[..., Exchange]) -> None:
    exchange = connect(a=is_slow, b=is_slow, c=is_slow, d=is_slow)
    started = time.monotonic()
    assert len(ask(exchange)) == 4
    assert time.monotonic() - started < 3 * SLOW_S


def test_a_refusal_comes_as_its_code_and_message_under_the_name_that_the_site_gives_itself(
    connect: Callable[..., Exchange],
) -> None:
    assert only_failure(ask(connect(north=refuses))) == Failure("SITE-RECIPE", "prepare again", "north")


@pytest.mark.parametrize("how", [raises, fails_in_flower])
def test_an_error_of_flower_comes_as_a_code_without_its_text(
    connect: Callable[..., Exchange], how: Behaviour
) -> None:
    failure = only_failure(ask(connect(north=how)))
    assert failure.code == "SITE-CRASHED"
    assert SECRET not in failure.message


def test_a_site_that_is_late_does_not_keep_the_others(connect: Callable[..., Exchange]) -> None:
    exchange = connect(deadline_s=SLOW_S / 4, east=is_slow, north=answers)
    started = time.monotonic()
    east, north = ask(exchange)
    assert time.monotonic() - started < SLOW_S
    assert east.answer == Failure("SITE-LATE", "connected, and no answer before the deadline")
    assert isinstance(north.answer, SiteDescription)


@pytest.mark.parametrize("how", [answers_garbage, answers_nothing, answers_another_question])
def test_an_answer_that_is_none_is_a_failure_of_its_site_alone(
    connect: Callable[..., Exchange], how: Behaviour
) -> None:
    east, north = ask(connect(east=how, north=answers))
    assert isinstance(east.answer, Failure)
    assert east.answer.code == "REPLY-PROTOCOL"
    assert isinstance(north.answer, SiteDescription)


def test_a_site_of_another_protocol_is_refused_with_both_versions_and_its_own_reason_is_read(
    connect: Callable[..., Exchange],
) -> None:
    east, north = ask(connect(east=answers_in_protocol_1, north=refuses_in_protocol_1))
    assert isinstance(east.answer, Failure)
    assert (east.site, east.answer.code) == ("east", "REPLY-PROTOCOL")
    assert "speaks protocol 1, this installation speaks 2: install the same release" in east.answer.message
    assert north.answer == Failure("SITE-RECIPE", "prepare again", "north")


def test_a_site_whose_node_is_gone_is_unavailable(connect: Callable[..., Exchange]) -> None:
    exchange = connect(deadline_s=SLOW_S, north=answers)
    exchange.nodes.by_site["lost"] = 99
    lost, north = ask(exchange)
    assert lost.site == "lost"
    assert isinstance(lost.answer, Failure)
    assert lost.answer.code == "SITE-UNAVAILABLE"
    assert isinstance(north.answer, SiteDescription)


def test_bytes_are_counted_in_both_directions(connect: Callable[..., Exchange]) -> None:
    exchange = connect(east=answers, north=refuses, west=answers_garbage)
    outcomes = ask(exchange)
    assert exchange.bytes_to_sites == 3 * size_bytes(encode(REQUEST))
    assert isinstance(outcomes[0].answer, SiteDescription)
    assert outcomes[0].size_bytes == size_bytes(encode(outcomes[0].answer))
    assert outcomes[1].size_bytes == size_bytes(encode(Refusal("north", "SITE-RECIPE", "prepare again")))
    assert exchange.bytes_from_sites == outcomes[0].size_bytes + outcomes[1].size_bytes


def test_each_site_can_be_given_a_request_of_its_own(connect: Callable[..., Exchange]) -> None:
    exchange = connect(north=answers, south=answers)
    requests = {
        site: DescribeRequest(replace(REQUEST.terms, recipe_digest=site)) for site in ("north", "south")
    }
    outcomes = list(exchange.ask(requests, SiteDescription))
    assert [o.answer.recipe_digest for o in outcomes if isinstance(o.answer, SiteDescription)] == [
        "north",
        "south",
    ]


def test_a_request_to_many_sites_is_encoded_once(
    connect: Callable[..., Exchange], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[Request] = []

    def counted(request: Request) -> RecordDict:
        encoded.append(request)
        return encode(request)

    monkeypatch.setattr(exchange_module, "encode", counted)
    exchange = connect(east=answers, north=answers, west=answers)
    other = DescribeRequest(replace(REQUEST.terms, recipe_digest="another"))
    outcomes = list(exchange.ask({"east": REQUEST, "north": REQUEST, "west": other}, SiteDescription))
    assert all(isinstance(outcome.answer, SiteDescription) for outcome in outcomes)
    assert encoded == [REQUEST, other]


def test_asking_nobody_gives_nothing(connect: Callable[..., Exchange]) -> None:
    exchange = connect(north=answers)
    assert list(exchange.ask({}, SiteDescription)) == []
    assert (exchange.bytes_to_sites, exchange.bytes_from_sites) == (0, 0)


def test_answers_are_pulled_one_by_one_as_they_are_asked_for(connect: Callable[..., Exchange]) -> None:
    exchange = connect(east=answers, north=answers, west=answers)
    outcomes = exchange.ask(dict.fromkeys(exchange.nodes.by_site, REQUEST), SiteDescription)
    first = next(outcomes)
    assert exchange.bytes_from_sites == first.size_bytes  # the others still lie with the grid
    assert len(list(outcomes)) == 2
