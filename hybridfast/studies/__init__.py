"""Strategies side by side: which is best, for which models, on which tests, and how sure that is."""
