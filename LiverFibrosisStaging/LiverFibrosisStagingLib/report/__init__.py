"""Presentation of results outside Slicer: pictures, tables, colours."""
