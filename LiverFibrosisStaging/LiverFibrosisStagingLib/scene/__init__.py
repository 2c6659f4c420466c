"""Slicer: nodes, panel, background jobs. Only this wing uses slicer, qt or MRML."""
