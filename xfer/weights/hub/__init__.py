"""Weights from the hubs of Hugging Face and of model libraries, through their own caches."""
