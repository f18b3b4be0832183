"""Scaling in virtual time: our decision, and a model of KEDA with the HPA, on the same loads.

docs/development/scaling-simulator.md tells what is modelled, and what the figures are.
"""
