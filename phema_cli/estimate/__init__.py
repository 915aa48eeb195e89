"""The estimate: a sample of the snapshots, whether they fit their tags, and the weights."""
