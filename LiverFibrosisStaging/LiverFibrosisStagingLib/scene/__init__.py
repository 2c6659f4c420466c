"""Slicer: nodes, panel, background jobs. The only wing that imports slicer, qt or MRML."""
