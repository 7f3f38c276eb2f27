"""Advice, estimates, audits, reviews and the catalog over HTTP."""
