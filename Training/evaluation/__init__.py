"""The exported model on a cohort: measures, location maps, figures, model card."""
