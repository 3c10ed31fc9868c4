"""All groups of a batch in one pass."""
