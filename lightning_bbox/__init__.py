"""Move a rough box onto its object: box-offset regression that converges."""
