"""Amaranth RTL of Serrano."""
