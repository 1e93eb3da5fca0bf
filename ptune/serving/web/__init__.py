"""A chat page for people, in the application of a server."""
