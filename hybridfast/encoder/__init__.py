"""The dual encoder: one SentenceTransformer that reads queries and documents."""
