"""Networks: a backbone, a head, and the layers that both need."""
