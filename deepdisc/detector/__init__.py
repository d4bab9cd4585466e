"""The two-stage detector: region proposals, then heads on the regions."""
