"""Weight and state files of every kind, and the upgrades of older formats."""
