"""Evaluation of exported models on a cohort: measures, location maps, figures, model card."""
