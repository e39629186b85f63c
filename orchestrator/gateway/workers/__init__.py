"""Several worker processes of one gateway: what they share, and who looks after them."""
