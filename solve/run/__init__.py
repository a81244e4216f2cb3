"""What scripts and commands share."""
