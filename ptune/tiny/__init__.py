"""The built-in tiny ChatGLM: its weights, its tokenizer and the scripts that made them."""
