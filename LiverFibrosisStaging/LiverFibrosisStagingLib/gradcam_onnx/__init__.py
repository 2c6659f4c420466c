"""Grad-CAM for ONNX classifiers in numpy: file, session, backward pass, methods."""
