"""Measurements that anyone can rerun; none of them runs in the tests."""
