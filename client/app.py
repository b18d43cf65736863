"""The ClientApp: one process for one message of the centre. Errors leave as codes, never as their text.

Not even the site's log has the text of what is wrong with its data, unless it is at DEBUG: such a text names
files and cases, and logs travel.
"""

import errno
import logging
import os
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod
from safetensors import SafetensorError

from client import work
from client.drained import is_refused
from client.egress import EgressLine, now, record_egress
from client.findings import FindingError
from client.policy import kind_name, require_allowed
from client.progress import ProgressFile
from client.site import SiteConfig, read_site
from client.study_cases import RefusedError
from client.work import Site
from dsan_model.protocol import (
    DescribeRequest,
    EvaluateRequest,
    ExplainRequest,
    FitEnsembleRequest,
    ProtocolError,
    Refusal,
    Reply,
    Request,
    RoundRequest,
    asked_by,
    content_digest,
    decode,
    encode,
    refusal_code,
    size_bytes,
)
from dsan_model.training import Machine

Asked = TypeVar("Asked", bound=Request)
SITES_VARIABLE = "DSAN_SITES"  # where a simulation tells its virtual nodes their site.toml, by partition

log = logging.getLogger("dsan.client")


def recorded(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The outermost mod: no reply leaves before the record of what left has it on disk."""
    reply = call_next(message, context)
    try:
        config = _site_config(context)
    except FindingError:  # without site.toml there is no place for a record, and the refusal says nothing
        return reply
    study, round_number = asked_by(message.content)
    line = EgressLine(
        now(),
        kind_name(message.metadata.message_type),
        study,
        round_number,
        size_bytes(reply.content),
        content_digest(reply.content),
        refusal_code(reply.content),
    )
    try:
        record_egress(config.state_folder, line)
    except OSError:
        log.exception("the record of what leaves cannot be written, so that nothing leaves")
        refusal = Refusal(config.name, "EGRESS-RECORD", "the site cannot write its record of what leaves it")
        return Message(encode(refusal), reply_to=message)
    return reply


def coded_errors(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Whatever goes wrong becomes a coded refusal; the details stay in the site's log."""
    name = str(context.node_config.get("site-name", ""))  # until site.toml says it
    try:
        name = _site_config(context).name
        return call_next(message, context)
    except RefusedError as error:
        refusal = Refusal(name, error.code, error.message)
    except FindingError as error:
        _log_finding(name, error)
        refusal = Refusal(name, error.finding.code, "the site's own log and `dsan-client check` say more")
    except ProtocolError as error:
        refusal = Refusal(name, "REQUEST-PROTOCOL", str(error))
    except torch.OutOfMemoryError:
        refusal = Refusal(name, "SITE-GPU-MEMORY", "the GPU's memory does not suffice for this study")
    except (OSError, SafetensorError) as error:
        _log_failure(name, error)
        number = getattr(error, "errno", None) or errno.EIO  # safetensors puts it into its text only
        refusal = Refusal(name, f"SITE-OS-{number}", "the operating system refused; see the site's log")
    except Exception as error:
        _log_failure(name, error)
        refusal = Refusal(name, "SITE-INTERNAL", f"{type(error).__name__}; see the site's log")
    return Message(encode(refusal), reply_to=message)


def _log_finding(site: str, error: FindingError) -> None:
    """A finding about settings in full; of one about data the code."""
    code = error.finding.code
    if code.startswith(("SITE-", "MACHINE-")):
        log.error("%s: %s", site, error)
    else:
        log.error("%s: refused with %s; `dsan-client check` says more", site, code)
        log.debug("%s: %s", site, error)


def _log_failure(site: str, error: Exception) -> None:
    """What failed, why in the system's own words, and where in the code."""
    frames = traceback.extract_tb(error.__traceback__)[-6:]
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    reason = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
    log.error("%s: the message could not be answered: %s%s in %s", site, type(error).__name__, reason, places)
    log.debug("%s: the message could not be answered", site, exc_info=error)


MODS: list[Mod] = [recorded, coded_errors]
app = ClientApp()


def refusing(code: str, reason: str) -> ClientAppCallable:
    """A ClientApp that answers every message with one refusal, recorded as any other."""

    def refuse(message: Message, context: Context) -> Message:
        raise RefusedError(code, reason)

    return lambda message, context: recorded(message, context, partial(coded_errors, call_next=refuse))


@app.query("describe", mods=MODS)
def describe(message: Message, context: Context) -> Message:
    """Who are you, and what would you bring to this study?"""
    return _answer(message, context, DescribeRequest, work.describe)


@app.train("round", mods=MODS)
def train_round(message: Message, context: Context) -> Message:
    """Validate the incoming weights, then train each branch from them."""
    return _answer(message, context, RoundRequest, work.train_round)


@app.evaluate("models", mods=MODS)
def evaluate(message: Message, context: Context) -> Message:
    """Score cases with finished models."""
    return _answer(message, context, EvaluateRequest, work.evaluate)


@app.evaluate("fit_ensemble", mods=MODS)
def fit_ensemble(message: Message, context: Context) -> Message:
    """Count validation cases for each ensemble weight."""
    return _answer(message, context, FitEnsembleRequest, work.fit_ensemble)


@app.evaluate("explain", mods=MODS)
def explain(message: Message, context: Context) -> Message:
    """Compare attention maps with infection masks."""
    return _answer(message, context, ExplainRequest, work.explain)


def _answer(
    message: Message, context: Context, expected: type[Asked], do: Callable[[Site, Asked], Reply]
) -> Message:
    config = _site_config(context)
    request = decode(message.content, expected)
    if isinstance(request, Refusal):
        raise ProtocolError("a refusal is not a request")
    require_allowed(config.policy, request)
    if is_refused(config.state_folder, request.terms.name):
        raise RefusedError("SITE-DRAINED", "by order of the centre, this site takes no message of this study")
    progress = ProgressFile(config.progress_file, *asked_by(message.content))
    threads_before = torch.get_num_threads()
    torch.set_num_threads(config.machine.threads or threads_before)
    try:
        reply = do(Site(config, _machine(config), progress.report), request)
    finally:
        torch.set_num_threads(threads_before)  # a simulation answers for the next site in the same thread
        progress.report("idle", 0, 0, None)
    return Message(encode(reply), reply_to=message)


def _site_config(context: Context) -> SiteConfig:
    """site.toml of the node: named in its node configuration, or by a simulation for each partition."""
    named = context.node_config.get("site-config")
    if named is None:
        partition = int(str(context.node_config["partition-id"]))
        named = os.environ[SITES_VARIABLE].split(os.pathsep)[partition]
    return read_site(Path(str(named)))


def _machine(config: SiteConfig) -> Machine:
    wanted = config.machine.device
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise RefusedError("SITE-NO-GPU", "site.toml asks for a GPU, and torch finds none")
    device = torch.device("cuda" if has_gpu and wanted != "cpu" else "cpu")
    n_gpus = torch.cuda.device_count() if device.type == "cuda" else 1
    processes = config.machine.processes or n_gpus
    if device.type == "cuda" and processes > n_gpus:
        raise RefusedError(
            "SITE-NO-GPU", f"[machine] asks for {processes} processes; torch finds {n_gpus} GPUs"
        )
    return Machine(device, loader_workers=4 if device.type == "cuda" else 0, processes=processes)
