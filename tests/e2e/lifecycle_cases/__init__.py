"""The table: what follows from a manifest and an event. See `tests.e2e.table` for what rows say."""
