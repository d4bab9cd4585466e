"""The commands of the command line, one file per group; each imports what it needs when it runs."""
