"""A run of train.py: its inputs, and the cross-validation of LFS networks."""
