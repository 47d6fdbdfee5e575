"""Ours against plain versions of the released code's way; see NOTES.md."""
