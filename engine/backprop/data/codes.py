"""Every code that a finding about data can have, with its meaning: an interface, never renamed.

``core.errors`` has the codes of errors that stop a command; these are findings about rows, listed and counted.
"""

from __future__ import annotations

PROBLEM_CODES: dict[str, str] = {
    "broken_json": "the row is not JSON: cut off, a comma too many, single quotes, nested too deep …",
    "broken_csv": "the record is not CSV: quotes that do not close, a stray line break",
    "broken_parquet": "the pages that hold the row are damaged",
    "column_count": "a CSV record has more or fewer cells than the header names",
    "not_utf8": "bytes that are no UTF-8",
    "nul_byte": "a NUL character, which no text has",
    "lone_surrogate": "half of a surrogate pair, which stands for no character",
    "bom": "the file begins with a byte order mark; it is skipped",
    "too_deep": "nested more deeply than can be read",
    "unknown_format": "the row's fields are those of no known format",
    "mixed_format": "the row has another format than most rows of the file",
    "missing_field": "a field that the format needs is not there",
    "invalid_type": "a list where text is needed, and the like",
    "invalid_value": "a value outside what the field can be",
    "invalid_role": "a role that is not system, user, assistant or tool",
    "role_order": "two turns in a row by the same side, a late system turn, or an answer to nothing",
    "no_turns": "the conversation is empty",
    "no_assistant": "no turn of the assistant: nothing to learn from",
    "empty_content": "a turn, a text or a side of a pair is empty",
    "unbalanced_tags": "ChatML tags that do not close",
    "text_outside_turns": "text between ChatML turns, which belongs to nobody",
    "unsupported_content": "an image, a sound or another part that is no text",
    "ignored_field": "a field of a message that is not used",
    "weight_rounded": "a loss weight between 0 and 1: turns are trained fully or not at all",
    "special_token": "a chat template's control token inside a text",
    "same_sides": "the two sides of a preference pair are the same",
    "no_prompt": "a preference pair without prompt",
    "one_label": "all labels of a feedback file are the same: there is nothing to tell apart",
    "duplicate_row": "the same content as an earlier row",
    "near_duplicate": "almost the same words as an earlier row",
    "held_out_overlap": "the row is also in the held-out file: its loss there would say nothing",
    "cut": "longer than the chosen length: the beginning is cut",
    "answer_lost": "longer than the chosen length so that the answer does not fit",
    "nothing_to_train": "no token of the row would be trained",
}
