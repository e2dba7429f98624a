"""MindIR written, read and run without MindSpore."""
