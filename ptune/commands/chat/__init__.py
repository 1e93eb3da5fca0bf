"""`ptune chat`: a conversation, in a terminal or through pipes, or the answer to one question."""
