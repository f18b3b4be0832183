"""Benchmarks of the whole system on a real cluster: ``python -m tests.bench NAME``.

Each measures its peers (Kubernetes Job, the bare API client) in the same run on the same cluster,
so that its ratios mean something on any machine. See docs/development/benchmarks.md.
"""
