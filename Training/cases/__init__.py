"""The cohort: manifest, inclusion, folds, flow chart, phantoms."""
