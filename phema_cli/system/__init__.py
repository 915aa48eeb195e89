"""What phema needs of the operating system: files and processes."""
