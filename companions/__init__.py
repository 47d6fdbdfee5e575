"""Companions: methods of other papers on the same data and the same training loop, each in a folder."""
