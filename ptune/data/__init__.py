"""From a data file to `input_ids` and `labels`: rows, records, prompt formats, tokenizers.

May import errors, files, base.
"""
