"""Cohorts: which cases they have, staging of all of them, and the table of the results."""
