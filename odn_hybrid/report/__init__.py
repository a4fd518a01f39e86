"""Tables and plain sentences for a person, from the data of `report.json`.

Units: MACs and parameters with k, M, G, T, P (powers of 1000); 1 MB = 10^6 bytes; accuracies in percent with
their 95 % interval. Nothing here measures or computes a result; it only shows what the report says.
"""

from odn_hybrid.report.picture import draw_comparison
from odn_hybrid.report.sentences import explain
from odn_hybrid.report.spread import seeds_table
from odn_hybrid.report.tables import curves_table, exits_table, summary_table
from odn_hybrid.report.timings import comparison_lines, timings_table

__all__ = [
    "comparison_lines",
    "curves_table",
    "draw_comparison",
    "exits_table",
    "explain",
    "seeds_table",
    "summary_table",
    "timings_table",
]
