"""Books, and what can be said about them."""
