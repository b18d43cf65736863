"""The golden case as findings of `dsan-client check`: does this machine compute what the others do?"""

import torch

from client.findings import Finding
from dsan_model.golden_case import golden_differences, golden_result

_FIX = (
    'Install the versions that constraints.txt names; if it stays so with device = "cpu" in site.toml too, '
    "do not join before the difference is explained."
)


def golden_findings(device: torch.device) -> tuple[Finding, ...]:
    """An error GOLDEN-MISMATCH for each number that this machine computes otherwise; none if all agree."""
    result = golden_result(device)
    return tuple(
        Finding("GOLDEN-MISMATCH", "error", f"golden case on {result.device}, {name}", message, _FIX)
        for name, message in golden_differences(result)
    )
