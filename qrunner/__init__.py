"""qrunner: mail queues in a directory, drained by runners that each own a slice of the hash space."""
