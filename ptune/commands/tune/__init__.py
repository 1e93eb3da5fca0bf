"""`ptune tune`: short runs that try learning rate, length and start of a prefix."""
