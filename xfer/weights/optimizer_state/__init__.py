"""The optimizer state in a checkpoint, given to the parameters of this run."""
