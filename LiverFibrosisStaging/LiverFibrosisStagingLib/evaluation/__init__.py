"""Results against a reference standard: measures with intervals, tests, tables and figures."""
