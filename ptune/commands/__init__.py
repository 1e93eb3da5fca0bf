"""The other commands, one module or package each; none imports another."""
