"""The pages that show a run, or compare several: HTML files that load nothing else."""

from jaxtl.reports.comparison import write_comparison
from jaxtl.reports.findings import Findings, find
from jaxtl.reports.page import PlannedPhase, write_page

__all__ = ["Findings", "PlannedPhase", "find", "write_comparison", "write_page"]
