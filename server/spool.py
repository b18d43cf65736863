"""Replies that come before their turn wait on disk, so that memory does not grow with the number of sites."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from dsan_model.protocol import RoundReply
from dsan_model.traffic import PackedWeights

Answer = TypeVar("Answer")


class Spool:
    """A folder below the run folder for the time of one request; without a run folder, memory."""

    def __init__(self, run_folder: Path | None) -> None:
        self._run_folder = run_folder
        self._folder: Path | None = None

    def __enter__(self) -> "Spool":
        if self._run_folder is not None:
            for left_over in self._run_folder.glob("spool-*"):  # by a process that was killed
                shutil.rmtree(left_over, ignore_errors=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def kept(self, answer: Answer) -> Answer:
        """The same answer; the arrays of a round's updates are views of files from here on."""
        if self._run_folder is None or not isinstance(answer, RoundReply):
            return answer
        updates = {branch: self._on_disk(update) for branch, update in answer.updates.items()}
        return replace(answer, updates=updates)

    def _on_disk(self, update: PackedWeights) -> PackedWeights:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="spool-", dir=self._run_folder))
        if not update.floats.size:
            return update
        path = self._folder / f"{len(list(self._folder.iterdir())):06d}"
        update.floats.tofile(path)
        return replace(update, floats=np.memmap(path, update.floats.dtype, mode="r"))
