"""What the club does when it is told something."""
