"""How good a retriever is in every pool of languages: data sets, encoding, exact ranks, measures, tables."""
