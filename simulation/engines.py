"""Three ways to run the same ServerApp and ClientApp over the sites of one machine."""

import ctypes
import logging
import os
import uuid
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from client.app import app as client_app
from server.app import app as server_app

RUN_ID = 1
_LARGEST_IN_HEAP, _KEPT_AT_THE_TOP = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of glibc's malloc.h

log = logging.getLogger("dsan.simulation")


class Engine(StrEnum):
    """How the messages of a simulated study travel."""

    INPROCESS = "inprocess"  # function calls, some sites at a time in threads
    RAY = "ray"  # Flower's simulation engine, one process for each core
    DEPLOYMENT = "deployment"  # a real SuperLink and a real SuperNode for each site, on loopback


def run_study_on(engine: Engine, run_folder: Path, site_configs: tuple[Path, ...], workers: int) -> None:
    """Run the study of a run folder over the sites, `workers` of them at a time; resumes what was begun."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of every process from here on: one core a site, the same last bits
    match engine:
        case Engine.INPROCESS:
            run_in_process(run_folder, site_configs, workers, client_app)
        case Engine.RAY:
            from simulation.ray_engine import run_on_ray

            run_on_ray(run_folder, site_configs, workers)
        case Engine.DEPLOYMENT:
            from simulation.deployment_engine import run_on_deployment

            run_on_deployment(run_folder, site_configs)


def run_in_process(run_folder: Path, site_configs: tuple[Path, ...], workers: int, app: ClientApp) -> None:
    """Run the study with this ClientApp at every site, as function calls."""
    _keep_freed_memory()
    with ThreadPoolExecutor(workers, "site", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        grid = InProcessGrid(app, site_configs, pool)
        server_app(grid, _context(0, {}, {"run-dir": str(run_folder)}))


def _keep_freed_memory() -> None:
    """Let glibc keep what a step of training frees: taking it anew from the kernel is a fifth of a step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_LARGEST_IN_HEAP, 32 * 2**20)  # the largest that glibc takes
        mallopt(_KEPT_AT_THE_TOP, 2**30)


def estimate_in_process(run_folder: Path, site_configs: tuple[Path, ...], workers: int) -> None:
    """Let the sites say how fast they are, and write estimate.json; nothing is trained."""
    _keep_freed_memory()
    with ThreadPoolExecutor(workers, "site", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        grid = InProcessGrid(client_app, site_configs, pool)
        server_app(grid, _context(0, {}, {"run-dir": str(run_folder), "dry-run": True}))


class InProcessGrid(Grid):
    """Flower's Grid as function calls: node i is the site of the i-th configuration.

    Messages of the same moment run in the pool's threads, each with one core; a reply is kept until pulled.
    """

    def __init__(self, app: ClientApp, site_configs: tuple[Path, ...], pool: ThreadPoolExecutor) -> None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = (
            1,
            RUN_ID,
            0,
        )  # `Message` asks for them
        self._app = app
        self._pool = pool
        self._contexts = {
            node: _context(node, {"site-config": str(path), "site-name": path.parent.name}, {})
            for node, path in enumerate(site_configs, 1)
        }
        self._replies: dict[str, Future[Message]] = {}
        self._run = Run.create_empty(RUN_ID)

    def set_run(self, run: Run) -> None:
        """Take the run; there is only one."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A new message; `Message` itself does as well."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every site's node."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Start the work on each message; an unknown node gets an empty identifier."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies that are there, each once."""
        ready = [key for key in message_ids if key in self._replies and self._replies[key].done()]
        return [self._replies.pop(key).result() for key in ready]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, wait and pull."""
        identifiers = [key for key in self.push_messages(messages) if key]
        return [self._replies.pop(key).result(timeout) for key in identifiers]

    def _push(self, message: Message) -> str:
        context = self._contexts.get(message.metadata.dst_node_id)
        if context is None:
            return ""
        identifier = uuid.uuid4().hex
        message.metadata.__dict__["_message_id"] = identifier  # a private name: the contract test watches it
        self._replies[identifier] = self._pool.submit(self._answer, message, context)
        return identifier

    def _answer(self, message: Message, context: Context) -> Message:
        try:
            return self._app(message, context)
        except Exception as error:
            log.exception("the ClientApp of node %d raised", context.node_id)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, str(error)), reply_to=message)


def _context(node: int, node_config: dict[str, str], run_config: dict[str, str | bool]) -> Context:
    return Context(
        run_id=RUN_ID,
        node_id=node,
        node_config=dict(node_config),
        state=RecordDict(),
        run_config=dict(run_config),
    )
