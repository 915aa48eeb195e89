"""What operating systems do for phema, each in one place."""
