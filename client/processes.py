"""One branch trained by several processes of a site: all its GPUs, or several cores (IV-C)."""

import logging
import multiprocessing
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from client.branch_training import BranchTask, Progress, TrainedBranch, train_alone
from client.study_cases import CaseSamples, RefusedError
from dsan_daemon.processes import end_with
from dsan_model.data_parallel import Share
from dsan_model.protocol import BranchTraining
from dsan_model.training import Machine
from dsan_model.weights import FlatWeights, load_weights, save_weights

OUT_OF_MEMORY = "out of memory"
_SUMMARY = TypeAdapter(BranchTraining)

log = logging.getLogger("dsan.client")


@dataclass(frozen=True)
class _Order:
    """What a process is told; tensors travel as files in `folder`."""

    task: BranchTask
    samples: CaseSamples
    has_optimiser_state: bool
    machine: Machine
    checkpointing: bool
    threads: int
    folder: Path


def train_in_processes(
    task: BranchTask,
    samples: CaseSamples,
    optimiser_state: dict[str, Tensor],
    machine: Machine,
    progress: Progress,
    *,
    checkpointing: bool = False,
) -> TrainedBranch:
    """As `train_alone`, by `machine.processes` processes that each have a part of every batch.

    RefusedError of any of them; torch.OutOfMemoryError if the memory of one did not suffice; RefusedError
    SITE-PROCESSES if one died.
    """
    with tempfile.TemporaryDirectory(prefix="dsan-") as name:
        folder = Path(name)
        save_weights(folder / "incoming.safetensors", task.incoming)
        if optimiser_state:
            save_file(optimiser_state, folder / "optimiser.safetensors")
        threads = max(1, torch.get_num_threads() // machine.processes)
        order = _Order(
            replace(task, incoming=_nothing(task)),
            samples,
            bool(optimiser_state),
            machine,
            checkpointing,
            threads,
            folder,
        )
        _run_all(order, progress)
        training = _SUMMARY.validate_json((folder / "training.json").read_bytes())
        weights = load_weights(folder / "trained.safetensors")
        return TrainedBranch(training, weights, load_file(folder / "trained-optimiser.safetensors"))


def _nothing(task: BranchTask) -> FlatWeights:
    """Weights without values, so that what is handed to a process is small."""
    return replace(task.incoming, floats=torch.empty(0), integers=torch.empty(0, dtype=torch.int64))


def _run_all(order: _Order, progress: Progress) -> None:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    processes: list[BaseProcess] = []
    try:
        for rank in range(order.machine.processes):
            processes.append(context.Process(target=_work, args=(rank, order, sender, os.getpid())))
            processes[-1].start()
        sender.close()
        _follow(receiver, processes, progress)
    finally:
        for process in processes:
            process.kill()
            process.join()
        receiver.close()


def _follow(receiver: Connection, processes: list[BaseProcess], progress: Progress) -> None:
    """Tell how far they are until all have ended well; the first that fails ends it."""
    while any(process.is_alive() for process in processes) or receiver.poll():
        try:
            if receiver.poll(0.2):
                _heed(receiver.recv(), progress)
        except EOFError:
            break
        failed = [process.exitcode for process in processes if process.exitcode]
        if failed and not receiver.poll():
            raise RefusedError("SITE-PROCESSES", f"a training process ended with exit code {failed[0]}")
    for process in processes:
        process.join()
        if process.exitcode:
            raise RefusedError(
                "SITE-PROCESSES", f"a training process ended with exit code {process.exitcode}"
            )


def _heed(said: tuple[str, object, object], progress: Progress) -> None:
    what, first, second = said
    if what == "step":
        progress(int(str(first)), int(str(second)))
    elif what == OUT_OF_MEMORY:
        raise torch.OutOfMemoryError("of a training process")
    else:
        raise RefusedError(str(first), str(second))


def _work(rank: int, order: _Order, sender: Connection, parent: int) -> None:
    """A process: join the others, train, and let the first one write what came of it."""
    end_with(parent)
    torch.set_num_threads(order.threads)
    warnings.filterwarnings("ignore", "Grad strides do not match")  # of 1x1x1 kernels: a copy more, no error
    is_gpu = order.machine.device.type == "cuda"
    device = torch.device("cuda", rank) if is_gpu else order.machine.device
    if is_gpu:
        torch.cuda.set_device(device)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # they are all on this computer
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        init_method=f"file://{order.folder}/rendezvous",
        rank=rank,
        world_size=order.machine.processes,
    )
    machine = replace(order.machine, device=device, share=Share(rank, order.machine.processes))

    def tell(done: int, steps: int) -> None:
        if rank == 0:
            sender.send(("step", done, steps))

    try:
        _train(order, machine, tell)
    except RefusedError as error:
        sender.send(("refused", error.code, error.message))
    except torch.OutOfMemoryError:
        sender.send((OUT_OF_MEMORY, "", ""))
    finally:
        dist.destroy_process_group()


def _train(order: _Order, machine: Machine, progress: Progress) -> None:
    folder = order.folder
    task = replace(order.task, incoming=load_weights(folder / "incoming.safetensors"))
    state = load_file(folder / "optimiser.safetensors") if order.has_optimiser_state else {}
    trained = train_alone(task, order.samples, state, machine, progress, checkpointing=order.checkpointing)
    if machine.share.rank == 0:
        save_weights(folder / "trained.safetensors", trained.weights)
        save_file(trained.optimiser, folder / "trained-optimiser.safetensors")
        (folder / "training.json").write_bytes(_SUMMARY.dump_json(trained.training))
    dist.barrier()
