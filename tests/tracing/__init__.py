"""Follows one Task through the operator, and lists the files that it passes."""
