"""Packed weights in files, so that the centre's memory grows neither with the sites nor with the branches.

A site's reply is 254 MB at full size, and so is what every site is sent. Here each is a file without a name
in the run folder, mapped: memory holds what is being looked at, and the disk is free again as soon as nobody
refers to it, also after a SIGKILL.
"""

import mmap
import tempfile
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np

from dsan_model.traffic import PackedWeights

SMALLEST_BYTES = 1 << 20  # less is not worth a file


class Spool:
    """Files below a folder; without a folder, memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def kept(self, weights: PackedWeights) -> PackedWeights:
        """The same weights; their floats are a view of a file from here on. OSError if the disk is full."""
        if self._folder is None or weights.floats.nbytes < SMALLEST_BYTES:
            return weights
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.write(weights.floats.data)
            file.flush()
            mapped = mmap.mmap(file.fileno(), weights.floats.nbytes, prot=mmap.PROT_READ)
        self._maps.add(mapped)
        found = replace(weights, floats=np.frombuffer(mapped, weights.floats.dtype))
        if "digest" in vars(weights):  # it was computed already
            vars(found)["digest"] = weights.digest
        return found

    def let_go(self) -> None:
        """Nothing of the files need stay in memory; what is looked at again is read again."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)
