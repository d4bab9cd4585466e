"""Field prediction: mosaic -> tiles -> detector -> merged, measured, written catalogue."""
