"""CTs and masks: reading, checks, grids, segmentation of liver and spleen."""
