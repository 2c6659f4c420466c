"""The staging network trained on fibrosis painted into real bodies: input, network, training."""
