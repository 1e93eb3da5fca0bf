"""Where transformers' own model tests demand what does not apply to these models, and why.

The name of a test, or how a group of names begins, and the reason.
"""

_TWO_POSITIONS = (
    "every token of ChatGLM-6B has a position and a block position; one number a token is refused"
)

# These must fail: one that passes is an error, and its line is to go.
CHATGLM = {
    "test_inputs_embeds": "positions follow from the ids, so embeddings alone are refused",
    "test_left_padding_compatibility": _TWO_POSITIONS,
    "test_eager_padding_matches_padding_free_with_position_ids": _TWO_POSITIONS,
    "test_sdpa_padding_matches_padding_free_with_position_ids": _TWO_POSITIONS,
}
CHATGLM2 = {}

# Run on a whole model with a prefix alone.
WHOLE = {
    "test_reverse_loading_mapping": (
        "the official names are those of a whole model, a decoder alone is saved under others; "
        "and without a prefix, the line that renames it matches nothing"
    ),
}
