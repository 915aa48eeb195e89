"""Packing: snapshots of any trainer, stored as what the last ones could not foretell of them."""
