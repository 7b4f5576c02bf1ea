"""Golden model: an executable copy of docs/numerics.md in numpy, equalled bit for bit by the RTL."""
