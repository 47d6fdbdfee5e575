"""The networks, their losses, class activation maps and weight names; knows no files."""
