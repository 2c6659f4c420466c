"""Prepare an ONNX classifier for Grad-CAM; see `LiverFibrosisStagingLib.gradcam_onnx`."""

import sys

from LiverFibrosisStagingLib.gradcam_onnx.make_explainable import main

if __name__ == "__main__":
    sys.exit(main())
