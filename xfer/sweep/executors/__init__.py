"""Where the jobs of a sweep run: worker processes on this machine, or a queue."""
