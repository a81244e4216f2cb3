"""What scripts and commands stand on."""
