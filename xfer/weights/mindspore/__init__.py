"""Files of MindSpore: checkpoints, MindIR, and the names that its libraries give."""
