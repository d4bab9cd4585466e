"""Honest probabilities after training: calibrations of heads fitted to a validation set, with their report."""
