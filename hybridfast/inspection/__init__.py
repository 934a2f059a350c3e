"""What is in a corpus, before anything is trained on it."""
