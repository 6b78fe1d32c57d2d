"""Sweeps: many variations of one config."""
