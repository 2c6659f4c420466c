"""Fibrosis of a known stage painted into real anatomy: bodies, effects of the stage, painter."""
