"""Prepare an ONNX classifier for Grad-CAM (`LiverFibrosisStagingLib.gradcam_onnx prepare`)."""

import sys

from LiverFibrosisStagingLib.gradcam_onnx.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["prepare", *sys.argv[1:]]))
