"""What the commands share: plans of runs, files, tables, figures, options, cache."""
