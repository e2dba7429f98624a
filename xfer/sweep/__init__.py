"""Several runs as one: who runs them, what they left, and what is made of it."""
