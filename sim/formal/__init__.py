"""Formal proofs of contracts: each has its properties, a reachable cover and a seeded bug that it catches."""
