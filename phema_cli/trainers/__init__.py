"""Trainers: what the files of each training program mean, one module a trainer."""
