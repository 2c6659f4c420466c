"""The LFS network: data, optimisation, export to ONNX."""
