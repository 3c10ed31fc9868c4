"""Faults in the midst of ``SAM.backward``, and what they leave behind; see ``benchmarks/faults.py``."""
