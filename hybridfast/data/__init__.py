"""Parallel text and the batches made of it: reading, tokenizing, sampling, and the embedded corpus."""
