"""Scaling in virtual time: our decision, and a model of KEDA with the HPA, on the same loads.

docs/development/scaling-simulator.md describes the model and the summary.
"""
