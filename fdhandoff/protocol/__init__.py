"""The conversation, without any I/O: messages, frames, the table of states, and the session that joins them."""
