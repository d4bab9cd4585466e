"""Bridges to other programs, none of which deepdisc needs; each imports its program when it is used."""
