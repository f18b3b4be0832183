"""Lifecycle cases, by subject: what follows from a manifest and an event."""
