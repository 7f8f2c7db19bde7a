"""The world outside: where books are kept, and how letters are sent."""
