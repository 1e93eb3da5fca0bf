"""`ptune doctor`: facts are gathered in one place and judged in another."""
