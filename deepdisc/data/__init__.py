"""Mosaics, tiles, truth and data sets: everything between files and tensors."""
