"""Job workers, which have no listener: by themselves, under the master, and behind a real broker."""
