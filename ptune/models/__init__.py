"""The networks of the ChatGLM family and the prefix encoder in front of them."""
