"""What several commands share: resuming a run, tables."""
