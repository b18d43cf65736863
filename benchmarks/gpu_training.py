"""Training steps at the paper's size on a site's GPUs: cases a second and memory, also with checkpointing.

Command: python benchmarks/gpu_training.py [--shape D H W] [--batch 20] [--steps 5] [--processes N]
Small, on a CPU: python benchmarks/gpu_training.py --shape 16 32 32 --batch 4 --steps 2 --width 4
Takes a few minutes on a GPU. Expected: to be measured. bfloat16 where a GPU has it, else float32.
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
import warnings

import numpy as np
import torch
import torch.distributed as dist

from dsan_model.data_parallel import Share, parallel
from dsan_model.network import NetworkConfig, initial_state
from dsan_model.training import (
    Machine,
    Sample,
    TrainingConfig,
    batches,
    build_network,
    make_optimiser,
    train_epoch,
)


class Noise:
    """Cases of noise that exist once, so that reading costs nothing."""

    def __init__(self, shape_DHW: tuple[int, int, int], n_cases: int) -> None:
        volume_DHW = torch.rand(shape_DHW).half()
        self.sample = Sample(volume_DHW, volume_DHW > 0.95, 1.0)
        self.n_cases = n_cases

    def __len__(self) -> int:
        return self.n_cases

    def __getitem__(self, position: int) -> Sample:
        return self.sample._replace(label=float(position % 2))


def work(rank: int, options: argparse.Namespace, folder: str, checkpointing: bool) -> None:
    """One process: its part of every batch; the first one prints what came out."""
    is_gpu = torch.cuda.is_available()
    device = torch.device("cuda", rank) if is_gpu else torch.device("cpu")
    share = Share(rank, options.processes)
    if options.processes > 1:
        warnings.filterwarnings("ignore", "Grad strides do not match")
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        meeting = f"file://{folder}/{checkpointing}"
        dist.init_process_group(
            "nccl" if is_gpu else "gloo", init_method=meeting, rank=rank, world_size=options.processes
        )
    machine = Machine(device, processes=options.processes, share=share)
    config = NetworkConfig(width=options.width)
    network = build_network(config, initial_state(config, 0), device)
    network.checkpointing = checkpointing
    model, optimiser = parallel(network, share), make_optimiser(network, TrainingConfig())
    samples = Noise(tuple(options.shape), options.batch * options.steps)
    for warm in (True, False):
        n_cases = options.batch if warm else len(samples)
        if is_gpu and not warm:
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        drawn = batches(samples, np.arange(n_cases), options.batch, machine)
        train_epoch(model, optimiser, drawn, 0.5, machine)
        if is_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB a GPU" if is_gpu else "CPU"
    if rank == 0:
        kind = "with checkpointing" if checkpointing else "plain"
        dtype = machine.autocast_dtype or torch.float32
        sys.stdout.write(
            f"{kind}: {len(samples) / seconds:.2f} cases a second, {seconds / options.steps:.2f} s a step, "
            f"{memory}, {dtype}, {options.processes} process(es)\n"
        )
    if options.processes > 1:
        dist.destroy_process_group()


def main() -> None:
    """Run both forms, each in processes of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", type=int, nargs=3, default=[138, 256, 256])
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--processes", type=int, default=max(1, torch.cuda.device_count()))
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for checkpointing in (False, True):
            started = [
                context.Process(target=work, args=(rank, options, folder, checkpointing))
                for rank in range(options.processes)
            ]
            for process in started:
                process.start()
            for process in started:
                process.join()
                if process.exitcode:
                    sys.stdout.write(
                        f"checkpointing {checkpointing}: ended with exit code {process.exitcode}\n"
                    )


if __name__ == "__main__":
    main()
