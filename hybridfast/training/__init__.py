"""Training a dual encoder: settings, the loop, and what a run leaves behind."""
