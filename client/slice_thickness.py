"""How thick slices may be: by the paper's protocol, and for a site by default (IV-A)."""

PAPER_THICKNESS_MM = 1.5  # at most; from 0.625 on
MAX_SLICE_THICKNESS_MM = 5.0
PAPERS_ARE = f"the paper's are 0.625 to {PAPER_THICKNESS_MM:g} mm"
