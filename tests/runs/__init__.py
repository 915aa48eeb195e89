"""What trainers leave on disk, of a run whose weights are known after every step."""
