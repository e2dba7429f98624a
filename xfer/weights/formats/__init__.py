"""Files of weights, told apart by content and read without running code."""
