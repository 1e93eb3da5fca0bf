"""P-Tuning v2 for the ChatGLM family, without remote code.

Importing this package loads nothing heavy: `load_model`, `load_tokenizer` and `chat` bring in torch
and transformers when they are first used.
"""

__version__ = "0.1.0"

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ptune.checkpoint.load import load_model
    from ptune.data.tokenizer import load_tokenizer
    from ptune.generation.original_chat import chat

__all__ = ["__version__", "chat", "load_model", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name == "load_model":
        from ptune.checkpoint.load import load_model

        return load_model
    if name == "load_tokenizer":
        from ptune.data.tokenizer import load_tokenizer

        return load_tokenizer
    if name == "chat":
        from ptune.generation.original_chat import chat

        return chat
    raise AttributeError(f"module 'ptune' has no attribute {name!r}")
