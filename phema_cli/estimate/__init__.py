"""The estimate: a sample of the snapshots, whether it bears their tags out, and the weights."""
