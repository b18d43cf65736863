"""Lungs by the package lungmask (extra; Hofmanninger et al., 2020), with weights from a local file.

Nothing is downloaded: the hospital fetches the weights itself (unet_r231-*.pth) and names the file.
"""

import hashlib
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from client.findings import Finding, FindingError
from client.segmentation import Segmentation

_FIX_WEIGHTS = "Set lungmask_weights under [segmentation] in site.toml to the file of the weights, from / on."


def lungmask_name(weights: Path) -> str:
    """Package version and digest of the weights: "lungmask-0.2.22+0a1b2c3d".

    Raises FindingError SEG-EXTRA if the package, SEG-WEIGHTS if the file is not there.
    """
    try:
        stat = weights.stat()
        return f"lungmask-{version('lungmask')}+{_digest(weights, stat.st_size, stat.st_mtime_ns)[:8]}"
    except PackageNotFoundError:
        fix = "Run `pip install 'dsan-federated[lungmask]'`, or choose another method."
        raise _error("SEG-EXTRA", "the package lungmask is not installed", fix) from None
    except OSError as error:
        raise _error("SEG-WEIGHTS", f"the weights cannot be read ({error.strerror})", _FIX_WEIGHTS) from None


def check_weights(weights: Path) -> None:
    """Load the network. Raises FindingError SEG-EXTRA or SEG-WEIGHTS."""
    lungmask_name(weights)
    _inferer(weights)


def segment_with_lungmask(ct: sitk.Image, weights: Path, case_id: str | None = None) -> Segmentation:
    """Both lungs of a chest CT in HU on its own grid. Raises FindingError SEG-WEIGHTS or SEG-NO-LUNGS."""
    name = lungmask_name(weights)
    labels_DHW = _inferer(weights).apply(ct)  # 0, 1 right, 2 left
    if not labels_DHW.any():
        fix = "Check that the scan shows a chest and that its values are HU."
        message = f"{name} finds no lung"
        raise FindingError(Finding("SEG-NO-LUNGS", "error", "scan", message, fix, case_id))
    mask = sitk.GetImageFromArray((labels_DHW > 0).astype(np.uint8))
    mask.CopyInformation(ct)
    return Segmentation(mask, name, ())


@lru_cache(maxsize=1)
def _inferer(weights: Path) -> Any:
    """The network, loaded once for all cases of a process; torch reads plain tensors only."""
    from lungmask import LMInferer

    try:
        return LMInferer(modelpath=str(weights), tqdm_disable=True)
    except Exception as error:  # torch and lungmask raise whatever a file that is no such network gives
        message = f"they are no weights of lungmask's R231 ({type(error).__name__})"
        raise _error("SEG-WEIGHTS", message, _FIX_WEIGHTS) from None


@lru_cache(maxsize=4)
def _digest(weights: Path, size: int, mtime_ns: int) -> str:
    with weights.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _error(code: str, message: str, fix: str) -> FindingError:
    return FindingError(Finding(code, "error", "lungmask", message, fix))
