"""Advice, estimates, audits, reviews and the catalog over HTTP.

What takes milliseconds is answered here. What reads data is done by a process of its own (`working`), which has a time
limit and memory of its own, so that a large file never slows anybody else's answer.
"""
