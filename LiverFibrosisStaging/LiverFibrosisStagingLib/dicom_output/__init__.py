"""A result as DICOM: segmentation, parametric map and structured report (pydicom, highdicom)."""
